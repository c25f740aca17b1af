"""A key for data cached per corpus in the user's cache."""

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def corpus_key(root: str | Path) -> str:
    """A key for a corpus in its present state: moving it, or adding, removing or changing a file, gives another key.

    It depends on the size and time of every file, not on contents.
    """
    root = Path(root).resolve()
    count = size = times = 0
    for entry in _below(root):
        count, size, times = count + 1, size + entry.st_size, times + entry.st_mtime_ns
    return hashlib.sha256(repr((str(root), count, size, times)).encode()).hexdigest()[:16]


def _below(root: Path) -> Iterator[os.stat_result]:
    """All files and folders below `root`, unordered. Links are followed, but no folder is entered twice."""
    folders, seen = [str(root)], set()
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                try:
                    status = entry.stat()
                except OSError:  # a broken link, or just removed
                    continue
                yield status
                folder = (status.st_dev, status.st_ino)
                if stat.S_ISDIR(status.st_mode) and folder not in seen:
                    seen.add(folder)
                    folders.append(entry.path)
