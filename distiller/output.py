"""A run's folder: whose it is, what may continue in it, and that one run at a time writes there."""

import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from distiller.files import remove, sweep
from distiller.recipe import RESUMABLE, Recipe, first_difference, save
from upstream.errors import UserError

RECIPE, REPORT, LOCK = "recipe.yaml", "report.json", ".lock"

# Where a run is placed decides its last bits, so it may not change while the run lasts; a finished one is only shown.
PLACEMENT = frozenset({"trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"})

# What may lie in a folder before its run: shells and schedulers write their logs there.
LOGS = frozenset({".log", ".txt", ".out", ".err"})


def is_finished(output: Path) -> bool:
    """Whether a run has ended here (its report is the last thing that a run writes)."""
    return os.path.isfile(output / REPORT)  # False, too, where one may not look


def check_same_recipe(output: Path, recipe: Recipe) -> None:
    """
    Raises:
        UserError: the output was made with another recipe; names the first key that differs, and both values.
    """
    ignore = RESUMABLE | PLACEMENT if is_finished(output) else RESUMABLE
    if difference := first_difference(output / RECIPE, recipe, ignore):
        raise UserError(f"{output} was made with another recipe: {difference}; give another --output or --overwrite")


def prepare(output: Path, recipe: Recipe, overwrite: bool) -> None:
    """Make `output` ready for a run of `recipe` to begin or continue, and note the recipe in it.

    With `overwrite` an earlier run's files are removed, whatever is among them.

    Raises:
        UserError: the files there are no run's, or that of another recipe.
    """
    files = [path for path in output.iterdir() if path.name != LOCK]
    foreign = [path for path in files if not (path.name.startswith(".") or (path.is_file() and path.suffix in LOGS))]
    if not (output / RECIPE).is_file():
        if foreign:
            raise UserError(
                f"{output} holds {foreign[0].name}, which is no run's: there is no {RECIPE}; give another --output"
            )
    elif overwrite:
        last = {REPORT: 0, RECIPE: 2}  # a removal that is interrupted leaves a run that is unfinished, and ours
        for path in sorted(files, key=lambda path: last.get(path.name, 1)):
            remove(path)
    else:
        check_same_recipe(output, recipe)
        sweep(output)
    save(recipe, output / RECIPE)


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
