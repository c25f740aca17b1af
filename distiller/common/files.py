"""Files and folders that appear whole or not at all."""

import csv
import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from upstream.errors import UserError
from upstream.files import sync_directory

PART = ".part-"  # begins the names of files being written


def expanded(path: str | Path) -> Path:
    """`path` with a leading ~ or ~USER as the home folder; as it is where there is no such folder."""
    try:
        return Path(path).expanduser()
    except (RuntimeError, ValueError):  # no such user, or a name that none can have
        return Path(path)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, with the same ending, that becomes `path` when the block ends well.

    A killed process leaves it behind; `sweep` takes it away.

    Raises:
        UserError: the disk is full or the folder cannot be written; nothing of `path` has changed then.
    """
    temporary = path.with_name(f"{PART}{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {os.strerror(error.errno or errno.EIO)}") from error
    finally:
        with suppress(OSError):  # where there is no such folder, a file stands in its place, or the disk is gone
            temporary.unlink()


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, whole or not at all."""
    with writing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    with writing(path) as temporary:
        temporary.write_text(text)


def write_with(path: Path, write: Callable[[Path], Any]) -> None:
    """Let a library write `path`: it gets a temporary path with the same ending."""
    with writing(path) as temporary:
        write(temporary)


def sweep(directory: Path) -> None:
    """Remove what killed processes left half-written below a folder in which no other process writes now."""
    for path in list(directory.rglob(f"{PART}*")):
        remove(path)


def remove(path: Path) -> None:
    """Remove a file or folder, whichever it is, when it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class StepTable:
    """metrics.csv: one row per optimiser step, however often the run was interrupted.

    A resumed run drops the rows of the steps that it makes again.
    """

    def __init__(self, path: Path, first_step: int) -> None:
        self.path = path
        self.columns: list[str] | None = None
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
            UserError: the disk refuses.
        """
        try:
            with self.path.open("a") as file:
                if self.columns is None:
                    self.columns = list(row)
                    file.write(",".join(self.columns) + "\n")
                file.write(",".join(f"{row.get(column, float('nan')):.8g}" for column in self.columns) + "\n")
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {os.strerror(error.errno or errno.EIO)}") from error


LOCK = ".lock"


@contextmanager
def claimed(output: Path, lock_name: str = LOCK) -> Iterator[None]:
    """Hold the output, created if need be, against other runs; with another lock, a part of it.

    The lock belongs to this process alone (POSIX, not BSD): after `kill -9` an orphaned data loader cannot hold it.

    Raises:
        UserError: another run holds it, or the folder cannot be made or written.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = (output / lock_name).open("ab+")
    except OSError as error:
        raise _refused(output, error) from error
    with lock:
        _lock(lock, output)
        yield


def check_writable(output: Path) -> None:
    """Try whether a folder can be written, or made where it is missing; leaves nothing there.

    Raises:
        UserError: it cannot.
    """
    there = next(path for path in (output, *output.parents) if os.path.exists(path))
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise _refused(output, error) from error


def _refused(output: Path, error: OSError) -> UserError:
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        inside = (path for path in (output, *output.parents) if os.path.lexists(path) and not os.path.isdir(path))
        return UserError(f"{output} cannot be the output: {next(inside, output)} is a file")
    return UserError(f"{output} cannot be written: {error.strerror}")


def _lock(file: BinaryIO, output: Path) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            return  # a file system without locks
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        file.seek(0)
        holder = file.read().decode() or "unknown"
        raise UserError(
            f"{output} is in use by another run (process {holder}); wait for it, or give another --output"
        ) from error
    file.truncate(0)
    file.write(str(os.getpid()).encode())
    file.flush()


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One process at a time in `directory`; the system lets go of the lock however the process ends.

    Raises:
        UserError: the directory cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / ".busy").open("w")  # not the run's own lock: closing that would let go of it
    except OSError as error:
        raise UserError(f"{directory} cannot be written: {error.strerror}") from error
    with file:
        with suppress(OSError):  # a file system without locks: at worst the same work is done twice
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def cache_directory() -> Path:
    """$SPEECH_DISTILLER_CACHE, else speech-distiller/ in the user's cache directory, and there superb/."""
    chosen = os.environ.get("SPEECH_DISTILLER_CACHE")
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    root = Path(chosen) if chosen else Path(caches) / "speech-distiller"
    return expanded(root).absolute() / "superb"


def write_whole(path: Path, text: str) -> Path:
    """Write a file that is never seen half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
    return path


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """`folder` when it is there; otherwise an empty one to fill, which becomes `folder` once the block has ended."""
    if folder.exists():
        yield folder
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        filled = Path(temporary) / "filled"
        filled.mkdir()
        yield filled
        if not folder.exists():  # another process may have been faster
            filled.rename(folder)
