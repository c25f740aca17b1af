"""Files, tables and folders that appear atomically, locks on folders, and the user's cache."""

import csv
import errno
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

from upstream.errors import UserError
from upstream.files import PART, atomic_file, sync_directory

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"
ESCAPE = "surrogateescape"  # a path in a text may be other bytes than UTF-8
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # errors of file systems without locks


def expanded(path: str | Path) -> Path:
    """`path` with a leading ~ or ~USER replaced by the home folder; unchanged if there is no such user."""
    try:
        return Path(path).expanduser()
    except (RuntimeError, ValueError):  # no such user, or a name that no user can have
        return Path(path)


def require_utf8(path: str) -> None:
    """
    Raises:
        UserError: a path that is not UTF-8, which safetensors, libsndfile and tables cannot handle.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        shown = re.sub("[\ud800-\udfff]", "\ufffd", path)
        raise UserError(f"{shown} is not UTF-8, but paths must be; rename it, or set a UTF-8 locale") from None


def cache_folder(name: str) -> Path:
    """Folder `name` of the package's cache: in $SPEECH_DISTILLER_CACHE, else in the user's cache directory.

    A user without a home, as in some containers, gets a temporary folder.
    """
    chosen = os.environ.get("SPEECH_DISTILLER_CACHE")
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    root = expanded(Path(chosen) if chosen else Path(caches) / "speech-distiller")
    if not chosen and root.parts[0] == "~":
        root = Path(tempfile.gettempdir()) / f"speech-distiller-{os.getuid()}"
    return root.absolute() / name


# --- errors


@contextmanager
def disk_errors(path: Path, action: str = "written", hint: str = "") -> Iterator[None]:
    """Turns an OSError of the block into a UserError: "PATH cannot be ACTION: reason"."""
    try:
        yield
    except OSError as error:
        raise disk_error(path, error, action, hint) from error


def disk_error(path: Path, error: OSError, action: str = "written", hint: str = "") -> UserError:
    """The UserError for an OSError about `path`."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    if path.is_relative_to(cache_folder("")):
        hint += "; SPEECH_DISTILLER_CACHE names another folder"
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        ancestors = (place for place in (path, *path.parents) if os.path.lexists(place) and not os.path.isdir(place))
        reason = f"{next(ancestors, path)} is a file"
    return UserError(f"{path} cannot be {action}: {reason}{hint}")


# --- files and tables


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """As `upstream.files.atomic_file`.

    Raises:
        UserError: the file cannot be written; `path` is unchanged.
    """
    with disk_errors(path), atomic_file(path) as temporary:
        yield temporary


def write_text(path: Path, text: str) -> Path:
    """Write text atomically; returns `path`."""
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors=ESCAPE)
    return path


def write_json(path: Path, value: Any) -> Path:
    """Write a value as indented JSON, atomically; returns `path`."""
    return write_text(path, json.dumps(value, indent=1) + "\n")


def write_with(path: Path, write: Callable[[Path], Any]) -> None:
    """Let a library write `path` atomically: it gets a temporary path with the same suffix."""
    with writing(path) as temporary:
        write(temporary)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> Path:
    """Write rows as a CSV with a header, atomically; the columns are every key of the rows unless given."""
    columns = columns or list(dict.fromkeys(key for row in rows for key in row))
    with writing(path) as temporary, temporary.open("w", newline="", encoding="utf-8", errors=ESCAPE) as file:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV with a header; none when there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8", errors=ESCAPE) as file:
        return list(csv.DictReader(file))


def read_columns(path: Path) -> dict[str, list[float]]:
    """The columns of a CSV of numbers; empty when there is no such file."""
    rows = read_csv(path)
    return {name: [float(row[name]) for row in rows] for name in (rows[0] if rows else [])}


class StepTable:
    """metrics.csv: one row per optimiser step, however often the run is interrupted.

    A resumed run drops the rows of steps that it repeats.
    """

    def __init__(self, path: Path, first_step: int) -> None:
        self.path = path
        self.columns: list[str] | None = None
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            rows = list(csv.reader(path.read_text().splitlines()))
            kept = [row for row in rows[1:] if len(row) == len(rows[0]) and int(row[0]) < first_step]
            if kept:
                self.columns = rows[0]
                write_text(path, "".join(",".join(row) + "\n" for row in [rows[0], *kept]))
            else:
                path.unlink()

    def append(self, row: dict[str, float]) -> None:
        """Add one row, its first column `step`; the columns are those of the first row.

        Raises:
            UserError: the file cannot be written.
        """
        with disk_errors(self.path), self.path.open("a") as file:
            if self.columns is None:
                self.columns = list(row)
                file.write(",".join(self.columns) + "\n")
            file.write(",".join(f"{row.get(column, float('nan')):.8g}" for column in self.columns) + "\n")


# --- folders


@contextmanager
def writing_folder(folder: Path) -> Iterator[Path]:
    """`folder` itself when it exists; otherwise a temporary folder to fill, renamed to `folder` when the block is done.

    Raises:
        UserError: the folder cannot be written.
    """
    if folder.exists():
        yield folder
        return
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=PART) as temporary:
            filled = Path(temporary) / folder.name
            filled.mkdir()
            yield filled
            for path in (*filled.rglob("*"), filled):
                sync_directory(path)  # for a file, its content
            if not folder.exists():  # another process may have been faster
                filled.rename(folder)
                sync_directory(folder.parent)


def sweep(directory: Path) -> None:
    """Remove half-written files of killed processes below a folder that no other process is writing to."""
    for path in list(directory.rglob(f"{PART}*")):
        remove(path)


def remove(path: Path) -> None:
    """Remove a file or folder if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Check that a folder can be written, or created if it is missing; leaves nothing behind.

    Raises:
        UserError: it cannot.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    with disk_errors(folder), tempfile.TemporaryFile(dir=existing):
        pass


@contextmanager
def lock_folder(folder: Path, name: str = LOCK, wait: bool = False) -> Iterator[None]:
    """Hold `folder`, created if missing, against other processes that lock the same `name` in it.

    The lock belongs to this process alone (POSIX): a data-loading worker that survives `kill -9` cannot hold it, and
    it is lost when the process closes any other handle of the lock file. If the block raises and the folder contains
    nothing but the lock, a newly created folder is removed again, so a refused command leaves nothing behind.

    Args:
        wait: wait for another process to release the lock, instead of raising.

    Raises:
        UserError: another process holds it, or the folder cannot be created or written.
    """
    missing = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / name).open("ab+", buffering=0)
    try:
        with file:
            with disk_errors(folder / name):
                _lock(file, folder, wait)
            yield
    except BaseException:
        with suppress(OSError):  # not empty: there is work to continue
            if missing and [path.name for path in folder.iterdir()] == [name]:
                (folder / name).unlink()
                for path in missing:
                    path.rmdir()
        raise


def _lock(file: FileIO, folder: Path, wait: bool) -> None:
    if fcntl is None:
        print(f"this system cannot lock {folder}: do not start another command that writes to it", file=sys.stderr)
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        file.seek(0)
        holder = file.read().decode() or "unknown"
        if not wait:
            raise UserError(
                f"{folder} is in use by another run (process {holder}); wait for it, or choose another --output"
            ) from error
        print(f"waiting for process {holder}, which is writing {folder}", file=sys.stderr)
        fcntl.lockf(file, fcntl.LOCK_EX)
    file.truncate(0)
    file.write(str(os.getpid()).encode())
