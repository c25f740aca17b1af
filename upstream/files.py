"""Files that appear atomically (a reader sees the old content or the new, never a part), and disk errors."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml

from .errors import UserError, first_line

PART = ".part-"  # prefix of files that are still being written


@contextmanager
def disk_errors(path: Path, action: str) -> Iterator[None]:
    """Turns an OSError of the block into a UserError: "PATH cannot be ACTION: reason"."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be {action}: {error.strerror or error}") from None


@contextmanager
def parse_errors(source: Path | str, kind: str) -> Iterator[None]:
    """Turns whatever parsing JSON or YAML raises into a UserError: "SOURCE is not KIND (reason, line 3)"."""
    try:
        yield
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:  # e.g. of "!!int x"
        mark = getattr(error, "problem_mark", None)  # of a YAML; JSON's errors have `msg` and `lineno`
        line = mark.line + 1 if mark else getattr(error, "lineno", None)
        reason = getattr(error, "problem", None) or getattr(error, "msg", first_line(error))
        raise UserError(f"{source} is not {kind} ({reason}{f', line {line}' if line else ''})") from None


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, with the same suffix, that becomes `path` when the block succeeds.

    A killed process can leave the temporary file behind; its name begins with `PART`.

    Raises:
        OSError: the disk is full or the folder cannot be written; `path` is unchanged.
    """
    temporary = path.with_name(f"{PART}{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("r+b") as written:  # Windows cannot sync a file opened read-only
            os.fsync(written.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    finally:
        with suppress(OSError):  # already renamed, or the folder does not exist
            temporary.unlink()


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Wait until a folder's entries (new files, renames) are on the disk, where the system opens folders for that."""
    with suppress(PermissionError):  # Windows does not
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
