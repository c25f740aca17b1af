"""Where audio comes from: a source on disk to Lhotse cuts, its headers checked, the outcome kept for the next start.

A source is a folder of audio files, one audio file, a Lhotse manifest of recordings or cuts, a Lhotse Shar folder, a
text file that lists any of these, or what `corpus.py prepare` made of one. No samples are read here.
"""

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable
from itertools import chain
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, TypeVar

import soundfile
from lhotse import AudioSource, CutSet, Recording
from lhotse.cut.data import DataCut
from lhotse.lazy import LazyManifestIterator
from lhotse.serialization import deserialize_item
from lhotse.utils import fastcopy

from distiller.audio.decoding import reason, sources
from distiller.audio.skipped import Skipped, read_skipped, write_skipped
from distiller.common.files import lock_folder, write_with
from distiller.common.progress import progress, quiet_stderr
from distiller.corpora.manifests import plain, read_items, wrong, wrong_recording
from distiller.corpora.prepared import is_prepared, read_prepared
from distiller.corpora.prepared import sources as prepared_sources
from upstream.errors import UserError

AUDIO = (".wav", ".flac", ".mp3", ".ogg", ".opus")
MANIFEST = (".jsonl", ".jsonl.gz")
LIST = (".txt", ".lst")
THREADS = 16  # headers wait for the disk, not for the processor
VERSION = 1  # raise it when the same source would give other cuts

Item = TypeVar("Item")


def locate(path: Path, subsets: list[str], key: str = "corpus.path") -> tuple[Path, list[Path]]:
    """The folder that ids are relative to, and the source of each subset (the path itself when none is named).

    A subset is a folder or a manifest in `path` or in `path`/LibriSpeech. `key` is what the user named `path` by.

    Raises:
        UserError: the path or a subset does not exist, or may not be read.
    """
    if not os.path.lexists(path):
        raise UserError(f"{key} is {str(path)!r}, which does not exist")
    if is_prepared(path):
        return path, prepared_sources(path, subsets)
    if not subsets:
        return (path if path.is_dir() else path.parent), [path]
    if not path.is_dir():
        raise UserError(f"corpus.subsets is {subsets}, but corpus.path {path} is a file: it has no subsets")
    root, found = path, _subsets(path)
    if "LibriSpeech" in found and not all(name in found for name in subsets):
        root, found = path / "LibriSpeech", _subsets(path / "LibriSpeech")
    missing = [name for name in subsets if name not in found]
    if missing:
        names = sorted(found)
        shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        raise UserError(f"{root} has no subset {missing[0]!r}; the subsets found are {shown or 'none'}")
    return root, [found[name] for name in subsets]


def _subsets(folder: Path) -> dict[str, Path]:
    """Everything in a folder that may be a subset; a manifest also goes by its name without the ending."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from error
    manifests = [entry for entry in entries if entry.name.endswith(MANIFEST)]
    folders = [entry for entry in entries if entry.is_dir()]
    return {entry.name.split(".jsonl")[0]: entry for entry in manifests} | {entry.name: entry for entry in folders}


def scan_cached(source: Path, root: Path, cache: Path | None) -> tuple[list[DataCut], list[Skipped]]:
    """`scan`, or what an earlier scan of the same source left in `cache`; processes that start together scan once.

    The corpus is taken to be as it was: files that came later stay unseen until `cache` is removed, so that an
    interrupted run continues on the same data.
    """
    if cache is None:
        return scan(source, root)
    digest = hashlib.sha256(json.dumps([VERSION, str(source), str(root)]).encode()).hexdigest()[:12]
    manifest = cache / f"{source.name.split('.')[0]}-{digest}.jsonl.gz"
    unreadable = cache / f"{source.name.split('.')[0]}-{digest}.skipped.csv"
    with lock_folder(cache, ".busy", wait=True):
        if not manifest.exists():
            cuts, skipped = scan(source, root)
            write_skipped(unreadable, skipped)
            write_with(manifest, lambda path: _write_cuts(path, cuts))  # last: it says that the scan is complete
    return list(progress(LazyManifestIterator(manifest), f"Reading {manifest.name}")), read_skipped(unreadable)


def _write_cuts(path: Path, cuts: list[DataCut]) -> None:
    with CutSet.open_writer(path) as writer:
        for cut in progress(cuts, f"Writing {path.name}", len(cuts)):
            writer.write(cut)


def scan(source: Path, root: Path) -> tuple[list[DataCut], list[Skipped]]:
    """The cuts of a source in a fixed order, and what of it cannot be used.

    Args:
        root: ids are the files' paths relative to it.

    Raises:
        UserError: the source is of no kind that is known, holds no audio, or may not be read.
    """
    found = list(_scan(source, root))
    return [item for item in found if isinstance(item, DataCut)], [item for item in found if isinstance(item, Skipped)]


def _scan(source: Path, root: Path, listed_in: tuple[Path, ...] = ()) -> Iterable[DataCut | Skipped]:
    if is_prepared(root):
        return read_prepared(source)
    if source.is_dir():
        shards = sorted(source.glob("cuts*.jsonl*"))
        if shards and any(source.glob("recording*.tar")):
            return chain.from_iterable(_in_threads(_shard, shards, f"Shards of {source.name}"))
        return _in_threads(lambda path: _file(path, root), _audio_files(source), f"Headers of {source.name}")
    if _is_audio(source):
        return _in_threads(lambda path: _file(path, root), [source], source.name)
    if source.name.endswith(MANIFEST):
        return _manifest(source)
    if source.name.endswith(LIST):
        return _listed(source, root, listed_in)
    endings = ", ".join((*AUDIO, *MANIFEST, *LIST))
    problem = "is no corpus" if source.exists() else "does not exist"
    raise UserError(f"{source} {problem}; it could be a folder, or a file that ends in one of {endings}")


def _is_audio(path: Path) -> bool:
    return path.name.lower().endswith(AUDIO) and not path.is_dir()


def _listed(source: Path, root: Path, listed_in: tuple[Path, ...]) -> Iterable[DataCut | Skipped]:
    """What a list names, in its order; the headers of all its audio files are read together."""
    if source.resolve() in listed_in:
        raise UserError(f"list {source} lists itself")
    lines = [line.strip() for line in _read(source).splitlines()]
    paths = [source.parent / line for line in lines if line]
    audio = list(dict.fromkeys(filter(_is_audio, paths)))
    headers = _in_threads(lambda path: _file(path, root), audio, f"Headers of {source.name}")
    found = dict(zip(audio, headers, strict=True))
    inside = (*listed_in, source.resolve())
    return chain.from_iterable([found[path]] if path in found else _scan(path, root, inside) for path in paths)


def _audio_files(folder: Path) -> list[Path]:
    """The audio files below a folder, sorted; links are followed, hidden files and folders left out."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error

    files, visited = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(parent)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if real not in visited else []
        if real not in visited:
            files += [Path(parent, name) for name in names if name.lower().endswith(AUDIO) and name[0] != "."]
        visited.add(real)
    if not files:
        kinds = ", ".join(ending[1:] for ending in AUDIO)
        raise UserError(f"{folder} holds no audio: there is no {kinds} file in it or in the folders below it")
    return sorted(files)


def _in_threads(examine: Callable[[Any], Item], items: list[Any], title: str) -> list[Item]:
    with quiet_stderr() as stderr, ThreadPool(THREADS) as pool:
        results = pool.imap(examine, items, chunksize=max(1, min(64, len(items) // THREADS)))
        return list(progress(results, title, len(items), stderr))


def _file(path: Path, root: Path) -> DataCut | Skipped:
    """A cut of a whole file, all its channels."""
    header = _header(str(path))
    if isinstance(header, Skipped):
        return header
    name = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
    source = AudioSource(type="file", channels=list(range(header.channels)), source=str(path))
    return Recording(name, [source], header.samplerate, header.frames, header.frames / header.samplerate).to_cut()


def _header(path: str) -> Any:
    try:
        path.encode()
        header = soundfile.info(path)
    except UnicodeEncodeError:
        return Skipped(os.fsencode(path).decode(errors="replace"), "its name is not UTF-8")
    except Exception as error:  # whatever libsndfile raises; the reason is kept
        return Skipped(path, reason(error, path))
    return header if header.frames > 0 else Skipped(path, "it holds no samples")


def _manifest(path: Path) -> list[DataCut | Skipped]:
    """The cuts of a Lhotse manifest; of its recordings, the whole of each."""
    candidates = [plain(item, path) for item in read_items(path)]
    cuts = [candidate for candidate in candidates if isinstance(candidate, DataCut)]
    paths = sorted({source.source for cut in cuts for source in sources(cut)})
    headers = _in_threads(_header, paths, f"Headers of {path.name}")
    broken = {header.path: header for header in headers if isinstance(header, Skipped)}

    def checked(cut: DataCut) -> DataCut | Skipped:
        return next((broken[s.source] for s in sources(cut) if s.source in broken), cut)

    return [checked(candidate) if isinstance(candidate, DataCut) else candidate for candidate in candidates]


def _shard(manifest: Path) -> list[DataCut | Skipped]:
    """The cuts of one Shar manifest, each with the place of its audio in the tar beside it."""
    archive = manifest.with_name(re.sub(r"^cuts(.*)\.jsonl(\.gz)?$", r"recording\1.tar", manifest.name))
    members = _members(archive)

    def with_absolute_paths(cut: Any) -> DataCut | Skipped:
        if not isinstance(cut, DataCut) or not isinstance(cut.id, str) or cut.id not in members:
            return Skipped(f"{archive}/{getattr(cut, 'id', '')}", "the archive does not hold it whole")
        recording, member = members[cut.id]
        if wrong_recording(recording) is None:
            source = fastcopy(recording.sources[0], type="file", source=f"{archive}/{member.name}")
            recording = fastcopy(recording, sources=[source])
        span = {"archive": str(archive), "offset": member.offset_data, "size": member.size}
        cut = fastcopy(cut, recording=recording, supervisions=[], features=None, custom={"span": span})
        problem = wrong(cut)
        return cut if problem is None else Skipped(f"{archive}/{cut.id}", problem)

    return [with_absolute_paths(cut) for cut in read_items(manifest)]


def _members(archive: Path) -> dict[str, tuple[Any, tarfile.TarInfo]]:
    """By cut id: recording and audio member of a Shar tar; of a damaged one, what comes before the damage."""
    audio: dict[str, tarfile.TarInfo] = {}
    members: dict[str, tuple[Any, tarfile.TarInfo]] = {}
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                name, _, ending = member.name.rpartition(".")
                if ending == "json" and (file := tar.extractfile(member)) is not None:
                    members[name] = (deserialize_item(json.load(file)), audio[name])
                else:
                    audio[name] = member
    except Exception:  # tarfile's, JSON's and Lhotse's, each its own
        pass  # each cut that is missing now is reported by name
    return members


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"list {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
