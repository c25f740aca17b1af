"""From a source on disk to Lhotse cuts with checked headers; the result is cached for the next start.

A source is a folder of audio files, one audio file, a Lhotse manifest of recordings or cuts, a Lhotse Shar folder, a
text file that lists any of these, or a corpus prepared by `corpus.py prepare`. No samples are read here.
"""

import json
import os
import re
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, TypeVar, cast

from lhotse import AudioSource, CutSet, Recording
from lhotse.cut.data import DataCut
from lhotse.lazy import LazyManifestIterator
from lhotse.serialization import deserialize_item
from lhotse.utils import fastcopy

from distiller.audio.decoding import sources
from distiller.audio.formats import AUDIO, COMMON, NOT_READ, ending, endings
from distiller.audio.headers import Undecodable, header
from distiller.audio.skipped import Skipped, read_skipped, write_skipped
from distiller.common.files import disk_error, disk_errors, lock_folder, write_with
from distiller.common.progress import progress, quiet_stderr
from distiller.common.values import digest
from distiller.corpora.config import SCANS
from distiller.corpora.manifests import (
    as_filed,
    plain,
    problem_of,
    problem_of_recording,
    read_items,
    read_list,
)
from distiller.corpora.prepared import check_subsets, is_prepared, prepared_sources, read_prepared
from upstream.errors import UserError

MANIFEST = (".jsonl", ".jsonl.gz")
LIST = (".txt", ".lst", ".tsv", ".m3u", ".m3u8")
THREADS = 16  # reading headers is limited by the disk, not by the processor
VERSION = 2  # increase when the same source would give different cuts

Item = TypeVar("Item")


def locate(path: Path, subsets: list[str]) -> tuple[Path, list[Path]]:
    """The folder that ids are relative to, and the source of each subset (the path itself if none is named).

    A subset is a folder or a manifest in `path` or in `path`/LibriSpeech.

    Raises:
        UserError: the path or a subset does not exist, or may not be read.
    """
    if not os.path.lexists(path):
        raise UserError(f"{path} does not exist")
    if is_prepared(path):
        return path, prepared_sources(path, subsets)
    if not subsets:
        return (path if path.is_dir() else path.parent), [path]
    if not path.is_dir():
        raise UserError(f"{path} is a file, so it has no subset {subsets[0]!r}")
    root, entries = path, _subsets(path)
    if "LibriSpeech" in entries and not entries.keys() >= set(subsets):
        root, entries = path / "LibriSpeech", _subsets(path / "LibriSpeech")
    check_subsets(root, subsets, entries)
    return root, [entries[name] for name in subsets]


def _subsets(folder: Path) -> dict[str, Path]:
    """Everything in a folder that may be a subset; manifests and fairseq lists also without their suffix."""
    with disk_errors(folder, "read"):
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    manifests = [entry for entry in entries if entry.name.endswith((*MANIFEST, ".tsv"))]
    folders = [entry for entry in entries if entry.is_dir()]
    return {re.sub(r"(\.tsv|\.jsonl(\.gz)?)$", "", entry.name): entry for entry in manifests} | {
        entry.name: entry for entry in folders
    }


def scan_cached(source: Path, root: Path, cache: Path | None) -> tuple[list[DataCut], list[Skipped]]:
    """`scan`, or the result of an earlier scan of the same source in `cache`; simultaneous processes scan once.

    Files added later are ignored until `cache` is removed, so that an interrupted run continues on the same data.
    """
    if cache is None:
        return scan(source, root)
    name = f"{source.name.split('.')[0]}-{digest([VERSION, str(source), str(root)])[:12]}"
    manifest, unreadable = cache / f"{name}.jsonl.gz", cache / f"{name}.skipped.csv"
    with lock_folder(cache, ".busy", wait=True):
        if not manifest.exists():
            cuts, skipped = scan(source, root)
            write_skipped(unreadable, skipped)
            write_with(manifest, lambda path: _write_cuts(path, cuts))  # last: it marks the scan as complete
    return list(progress(LazyManifestIterator(manifest), f"Reading {manifest.name}")), read_skipped(unreadable)


@contextmanager
def forgetting_a_failed_scan(cache: Path) -> Iterator[None]:
    """If the block fails, the corpus is rescanned the next time, as the user may have repaired it."""
    before = {path for name in SCANS for path in cache.glob(name)}
    try:
        yield
    except Exception:
        for path in {path for name in SCANS for path in cache.glob(name)} - before:
            path.unlink(missing_ok=True)
        raise


def _write_cuts(path: Path, cuts: list[DataCut]) -> None:
    with CutSet.open_writer(path) as writer:
        for cut in progress(cuts, f"Writing {path.name}", len(cuts)):
            writer.write(cut)


def scan(source: Path, root: Path) -> tuple[list[DataCut], list[Skipped]]:
    """The cuts of a source in a fixed order, and the files that cannot be used.

    Args:
        root: ids are the files' paths relative to it.

    Raises:
        UserError: the source is of an unknown kind, holds no audio, or may not be read.
    """
    items = list(_scan(source, root))
    return [item for item in items if isinstance(item, DataCut)], [item for item in items if isinstance(item, Skipped)]


def _scan(source: Path, root: Path, listed_in: tuple[Path, ...] = ()) -> Iterable[DataCut | Skipped]:
    if is_prepared(root):
        return read_prepared(source)
    if source.is_dir():
        shards = sorted(path for path in source.glob("cuts*.jsonl*") if path.is_file())
        if shards and any(source.glob("recording*.tar")):
            return chain.from_iterable(cast(Any, _in_threads(_shard, shards, f"Shards of {source.name}")))
        audio, other = _audio_files(source)
        return [*_files(audio, root, source.name), *map(_not_read, other)]
    if _is_audio(source):
        return _files([source], root, source.name)
    if source.exists() and not source.is_file():
        raise UserError(f"{source} is neither a folder nor a regular file")
    if source.name.endswith(MANIFEST):
        return _manifest(source)
    if source.name.endswith(LIST):
        return _listed(source, root, listed_in)
    if ending(source) in NOT_READ and listed_in:
        return [_not_read(source)]
    known = ", ".join((*COMMON, *MANIFEST, *LIST))
    problem = "is not a corpus" if source.exists() else "does not exist"
    raise UserError(f"{source} {problem}; a corpus is a folder, or a file that ends in one of {known}")


def _is_audio(path: Path) -> bool:
    return path.name.lower().endswith(AUDIO) and not path.is_dir()


def _listed(source: Path, root: Path, listed_in: tuple[Path, ...]) -> Iterable[DataCut | Skipped]:
    """The entries of a list, in its order; the headers of all its audio files are read together."""
    if source.resolve() in listed_in:
        raise UserError(f"list {source} lists itself")
    folder, entries = read_list(source)
    root = root if folder == source.parent else folder
    audio = list(dict.fromkeys(path for _, path in entries if _is_audio(path)))
    files = dict(zip(audio, _files(audio, root, source.name), strict=True))
    items: list[DataCut | Skipped] = []
    for number, path in entries:
        try:
            items += [files[path]] if path in files else _scan(path, root, (*listed_in, source.resolve()))
        except UserError as error:
            raise UserError(f"list {source}, line {number}: {error}") from error
    return items


def _audio_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The audio files below a folder, and those in formats that are not read, sorted.

    Links are followed, hidden files and folders ignored.
    """

    def refuse(error: OSError) -> None:
        raise disk_error(Path(error.filename), error, "read") from error

    files, visited = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(parent)
        folders[:] = sorted(name for name in folders if name[0] != "." and real not in visited)
        files += [Path(parent, name) for name in names if name[0] != "." and real not in visited]
        visited.add(real)
    audio = sorted(path for path in files if path.name.lower().endswith(AUDIO))
    other = sorted(path for path in files if ending(path) in NOT_READ)
    if not audio:
        kinds = ", ".join(one[1:] for one in COMMON)
        counts = ", ".join(f"{count} {kind}" for kind, count in endings(other).items())
        raise UserError(
            f"{folder} holds no audio: neither {kinds} files nor others that libsndfile reads, in it or in its "
            "subfolders" + (f", but {counts}, which must be converted first" if counts else "")
        )
    return audio, other


def _not_read(path: Path) -> Skipped:
    return Skipped(_shown(path), f"{ending(path)} files are not read; convert it to wav or flac")


def _shown(path: str | Path) -> str:
    """A path as text that can be written to any file."""
    return os.fsencode(path).decode(errors="replace")


def _in_threads(examine: Callable[[Any], Item], items: list[Any], title: str) -> list[Item | Skipped]:
    """The results of `examine` in order; a row for each path that is Undecodable."""

    def examined(item: Any) -> Item | Skipped:
        try:
            return examine(item)
        except Undecodable as error:
            return Skipped(_shown(item), str(error))

    with quiet_stderr() as stderr, ThreadPool(THREADS) as pool:
        results = pool.imap(examined, items, chunksize=max(1, min(64, len(items) // THREADS)))
        return list(progress(results, title, len(items), stderr))


def _files(paths: list[Path], root: Path, name: str) -> list[DataCut | Skipped]:
    """A cut of each complete file, with all its channels."""

    def cut(path: Path) -> DataCut:
        found = header(str(path))
        name = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
        source = AudioSource(type="file", channels=list(range(found.channels)), source=str(path))
        recording = Recording(name, [source], found.samplerate, found.frames, found.frames / found.samplerate)
        return recording.to_cut()

    return _in_threads(cut, paths, f"Headers of {name}")


def _manifest(path: Path) -> list[DataCut | Skipped]:
    """The cuts of a Lhotse manifest; one for each of its recordings, if it has those."""
    candidates = [plain(item, path) for item in read_items(path)]
    cuts = [candidate for candidate in candidates if isinstance(candidate, DataCut)]
    paths = sorted({source.source for cut in cuts for source in sources(cut)})
    known = dict(zip(paths, _in_threads(header, paths, f"Headers of {path.name}"), strict=True))

    def checked(cut: DataCut) -> DataCut | Skipped:
        found = [known[source.source] for source in sources(cut)]
        first = next((one for one in found if isinstance(one, Skipped)), found[0])
        return first if isinstance(first, Skipped) else as_filed(cut, first, path)

    return [checked(candidate) if isinstance(candidate, DataCut) else candidate for candidate in candidates]


def _shard(manifest: Path) -> list[DataCut | Skipped]:
    """The cuts of one Shar manifest, each with the position of its audio in the tar beside it."""
    archive = manifest.with_name(re.sub(r"^cuts(.*)\.jsonl(\.gz)?$", r"recording\1.tar", manifest.name))
    members = _members(archive)

    def located(cut: Any) -> DataCut | Skipped:
        if not isinstance(cut, DataCut) or not isinstance(cut.id, str) or not members[cut.id]:
            return Skipped(f"{archive}/{getattr(cut, 'id', '')}", "it is missing or truncated in the archive")
        recording, member = members[cut.id].pop(0)  # cuts of equal ids come in the order of the archive
        if problem_of_recording(recording) is None:
            source = fastcopy(recording.sources[0], type="file", source=f"{archive}/{member.name}")
            recording = fastcopy(recording, sources=[source])
        span = {"archive": str(archive), "offset": member.offset_data, "size": member.size}
        cut = fastcopy(cut, recording=recording, supervisions=[], features=None, custom={"span": span})
        problem = problem_of(cut)
        return cut if problem is None else Skipped(f"{archive}/{cut.id}", problem)

    return [located(cut) for cut in read_items(manifest)]


def _members(archive: Path) -> dict[str, list[tuple[Any, tarfile.TarInfo]]]:
    """Recordings and audio members of a Shar tar by cut id; of a damaged tar, those before the damage."""
    audio: dict[str, tarfile.TarInfo] = {}
    members: dict[str, list[tuple[Any, tarfile.TarInfo]]] = defaultdict(list)
    try:
        with tarfile.open(archive if archive.is_file() else os.devnull, "r:") as tar:
            for member in tar:
                name, _, ending = member.name.rpartition(".")
                if ending == "json" and (file := tar.extractfile(member)) is not None:
                    members[name].append((deserialize_item(json.load(file)), audio[name]))
                else:
                    audio[name] = member
    except Exception:  # tarfile, JSON and Lhotse raise several kinds
        pass  # the caller sets aside every cut that is missing here
    return members
