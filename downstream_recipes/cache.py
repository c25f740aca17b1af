"""Files kept between runs in the user's cache, per corpus, whole or not at all."""

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from distiller.files import expanded


def cache_directory() -> Path:
    """$SPEECH_DISTILLER_CACHE, else speech-distiller/ in the user's cache directory, and there superb/."""
    chosen = os.environ.get("SPEECH_DISTILLER_CACHE")
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    root = Path(chosen) if chosen else Path(caches) / "speech-distiller"
    return expanded(root).absolute() / "superb"


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
