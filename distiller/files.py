"""Files and folders that appear whole or not at all."""

import csv
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

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
