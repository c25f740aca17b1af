"""Progress bars, and a terminal that nothing else writes to while they are shown."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO, TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")


def progress(
    items: Iterable[Item], title: str, total: int | None = None, stderr: TextIO | None = None
) -> Iterable[Item]:
    """The items, with a progress bar on stderr while they are consumed, if stderr is a terminal."""
    file = stderr or sys.stderr
    console = Console(file=file)
    return track(items, title, total, console=console, transient=True, disable=not file.isatty())


@contextmanager
def quiet_stderr() -> Iterator[TextIO]:
    """Silences C libraries (libmpg123 prints about damaged files); yields the real stderr for a progress bar."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        with os.fdopen(saved, "w", closefd=False) as stderr:
            yield stderr
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)
