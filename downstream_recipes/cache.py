"""Files kept between runs in the user's cache, per corpus, whole or not at all."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distiller.files import expanded


def cache_directory() -> Path:
    """$SPEECH_DISTILLER_CACHE, else speech-distiller/ in the user's cache directory, and there superb/."""
    chosen = os.environ.get("SPEECH_DISTILLER_CACHE")
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    root = Path(chosen) if chosen else Path(caches) / "speech-distiller"
    return expanded(root).absolute() / "superb"


def corpus_key(root: str | Path) -> str:
    """A name for a corpus as it stands: another place, or another state of its top folders, gives another name."""
    root = Path(root).resolve()
    folders = [root, *sorted(path for path in root.glob("*") if path.is_dir())]
    state = [(str(path), path.stat().st_mtime_ns) for path in folders if path.exists()]
    return hashlib.sha256(repr(state or str(root)).encode()).hexdigest()[:16]


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
