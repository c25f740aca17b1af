"""Files kept between runs in the user's cache, per corpus, whole or not at all."""

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def corpus_key(root: str | Path) -> str:
    """A name for a corpus as it stands: another place, or anything added, removed or changed below it, gives another.

    Every file's size and time are looked at, no content.
    """
    root = Path(root).resolve()
    count = size = times = 0
    for found in _below(root):
        count, size, times = count + 1, size + found.st_size, times + found.st_mtime_ns
    return hashlib.sha256(repr((str(root), count, size, times)).encode()).hexdigest()[:16]


def _below(root: Path) -> Iterator[os.stat_result]:
    """All files and folders below `root`, in no order. Links are followed, into no folder twice."""
    folders, seen = [str(root)], set()
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                try:
                    found = entry.stat()
                except OSError:  # a link to nothing, or removed at this moment
                    continue
                yield found
                folder = (found.st_dev, found.st_ino)
                if stat.S_ISDIR(found.st_mode) and folder not in seen:
                    seen.add(folder)
                    folders.append(entry.path)
