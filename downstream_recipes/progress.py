"""A progress bar on stderr, where there is a terminal."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")


def progress(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """The items, with a bar while they are taken."""
    console = Console(stderr=True)
    yield from track(items, description, total, console=console, transient=True, disable=not sys.stderr.isatty())
