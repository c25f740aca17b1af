"""Progress bars, and what else may write to the terminal while they do."""

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
    """The items, with a bar on stderr while they are taken; none where stderr is no terminal."""
    file = stderr or sys.stderr
    console = Console(file=file)
    return track(items, title, total, console=console, transient=True, disable=not file.isatty())


@contextmanager
def quiet_stderr() -> Iterator[TextIO]:
    """Silence what C libraries print (libmpg123 on damaged files); yields the real stderr for a progress bar."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        with os.fdopen(saved, "w", closefd=False) as stderr:
            yield stderr
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)
