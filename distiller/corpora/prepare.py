"""A corpus decoded once: Lhotse Shar of 16 kHz mono audio, from which training reads faster than from its files.

Work is done shard by shard in processes of torch's DataLoader, which end when this one is killed. A shard's files
appear whole, its record last; a shard that has a record and the bytes that it promises is not made again, so that an
interrupted preparation continues, and a damaged one is mended.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lhotse.cut.data import DataCut
from torch.utils.data import DataLoader, Dataset

from distiller.audio.dataset import lost_workers
from distiller.audio.skipped import Skipped, check_share, read_skipped, write_skipped
from distiller.common.files import expanded, lock_folder, sweep, write_json
from distiller.common.progress import progress
from distiller.common.values import difference
from distiller.corpora import prepared as layout
from distiller.corpora.prepared import ALL, PREPARATION, SKIPPED, Shard, is_prepared
from distiller.corpora.scanning import locate, scan_cached
from distiller.corpora.shards import Format, Work, write_shard
from upstream.errors import UserError

SHARD_SECONDS = 3600.0


@dataclass(frozen=True)
class Prepared:
    """A complete prepared corpus."""

    folder: Path
    shards: int
    utterances: int
    seconds: float
    skipped: int
    bytes: int


def prepare(
    corpus: Path,
    output: Path,
    subsets: list[str] | None = None,
    format: Format = "wav",
    workers: int = 1,
    max_skipped: float = 0.01,
    shard_seconds: float = SHARD_SECONDS,
) -> Prepared:
    """Decode a corpus, or some of its subsets, into `output`, or what of it is missing or damaged there.

    Args:
        corpus: whatever `open_corpus` takes as corpus.path, but for the embedded corpus.
        workers: processes; 0 works in this one.
        max_skipped: share of the utterances that may be unusable.

    Raises:
        UserError: as `open_corpus`; `output` cannot be written, or holds another corpus or other files; the corpus, or
            a worker, went away.
    """
    corpus = expanded(corpus).absolute()
    asked = {
        "version": layout.VERSION, "corpus": str(corpus), "subsets": subsets or [], "format": format,
        "shard_seconds": shard_seconds,
    }  # fmt: skip
    with lock_folder(output):
        complete = _earlier(output, asked)
        if complete and (done := _intact(output, workers)):
            return done
        sweep(output)
        root, found = locate(corpus, subsets or [])
        if is_prepared(root):
            raise UserError(f"{corpus} is a prepared corpus already; give it as corpus.path")
        write_json(output / PREPARATION, asked)
        cache, names = output / "scan", subsets or [ALL]
        scans = {name: scan_cached(source, root, cache) for name, source in zip(names, found, strict=True)}
        work = [item for name, (cuts, _) in scans.items() for item in shards_of(name, cuts, shard_seconds)]
        skipped = [row for _, rows in scans.values() for row in rows]
        total = sum(len(cuts) for cuts, _ in scans.values()) + len(skipped)
        _set_aside(output, skipped, total, max_skipped)
        made: list[Shard] = []
        for shard in _made(work, output, format, workers):
            made.append(shard)
            if shard.skipped:
                skipped += [Skipped(*row) for row in shard.skipped]
                _set_aside(output, skipped, total, max_skipped)
        numbers = {name: sum(item.name == name for item in work) for name in scans}
        found_parts = layout.parts([cut.id for item in work for cut in item.cuts]) if not subsets else []
        write_json(output / PREPARATION, asked | {"shards": numbers, "parts": found_parts})
        return _summary(output, made)


def _set_aside(output: Path, skipped: list[Skipped], total: int, max_skipped: float) -> None:
    write_skipped(output / SKIPPED, skipped)
    check_share(len(skipped), total, max_skipped, f"{output / SKIPPED} says why; or raise --max-skipped")


def _earlier(output: Path, asked: dict[str, Any]) -> bool:
    """Whether `output` holds the same preparation, complete.

    Raises:
        UserError: it holds another one, or files of something else.
    """
    if not is_prepared(output):
        foreign = sorted(path.name for path in output.iterdir() if path.name[0] != ".")
        if foreign:
            raise UserError(f"{output} holds {foreign[0]}, which is no prepared corpus's; give another --output")
        return False
    before = layout.read_preparation(output)
    if key := difference({name: before.get(name) for name in asked}, asked):
        raise UserError(f"{output} was prepared otherwise: {key}; give another --output")
    return "shards" in before


def verify(folder: Path, workers: int = 1) -> Prepared:
    """Check every byte of a prepared corpus.

    Raises:
        UserError: it is not complete, or shards are missing or damaged; names the first.
    """
    if not is_prepared(folder):
        raise UserError(f"{folder} holds no prepared corpus: there is no {PREPARATION}")
    results = _checked(folder, workers)
    broken = [item for item, shard in results if shard is None]
    if broken:
        first = folder / layout.shard_files(broken[0].name, broken[0].index)[1]
        raise UserError(
            f"{len(broken)} of {len(results)} shards are missing or damaged, the first is {first}; "
            "run the same `corpus.py prepare` again to make them anew"
        )
    return _summary(folder, [shard for _, shard in results if shard is not None])


def _checked(folder: Path, workers: int) -> list[tuple[Work, Shard | None]]:
    """Every shard of a complete prepared corpus, with its record if all its bytes are there."""
    work = [Work(name, index, []) for name, number in layout.counts(folder).items() for index in range(number)]
    return list(zip(work, _in_processes(_Checker(work, folder), workers, "Verifying"), strict=True))


def _intact(folder: Path, workers: int) -> Prepared | None:
    """What `verify` finds where it finds nothing wrong."""
    shards = [shard for _, shard in _checked(folder, workers)]
    return None if None in shards else _summary(folder, [shard for shard in shards if shard is not None])


def shards_of(name: str, cuts: list[DataCut], seconds: float) -> list[Work]:
    """Runs of cuts of about `seconds` each, in order; a function of the cuts alone."""
    groups: list[list[DataCut]] = []
    filled = seconds
    for cut in cuts:
        if filled >= seconds:
            groups.append([])
            filled = 0.0
        groups[-1].append(cut)
        filled += cut.duration
    return [Work(name, index, group) for index, group in enumerate(groups)]


class _Checker(Dataset[Shard | None]):
    def __init__(self, work: list[Work], folder: Path) -> None:
        self.work, self.folder = work, folder

    def __len__(self) -> int:
        return len(self.work)

    def __getitem__(self, index: int) -> Any:
        return layout.intact(self.folder, self.work[index].name, self.work[index].index)


class _Maker(_Checker):
    """Makes a shard unless it is there; an error is a value here, since exceptions of a worker lose their shape."""

    def __init__(self, work: list[Work], folder: Path, format: Format) -> None:
        super().__init__(work, folder)
        self.format: Format = format

    def __getitem__(self, index: int) -> Shard | UserError:
        try:
            return super().__getitem__(index) or write_shard(self.work[index], self.folder, self.format)
        except UserError as error:
            return error


def _made(work: list[Work], output: Path, format: Format, workers: int) -> Any:
    for shard in _in_processes(_Maker(work, output, format), workers, "Preparing"):
        if isinstance(shard, UserError):
            raise shard
        yield shard


def _in_processes(dataset: _Checker, workers: int, title: str) -> Any:
    """The items of a dataset in order, made by worker processes.

    Raises:
        UserError: a worker was killed.
    """
    loader = DataLoader(dataset, batch_size=None, num_workers=min(workers, len(dataset)))
    with lost_workers("--workers"):
        yield from progress(loader, title, len(dataset))


def _summary(folder: Path, shards: list[Shard]) -> Prepared:
    return Prepared(
        folder,
        len(shards),
        sum(shard.utterances for shard in shards),
        sum(shard.seconds for shard in shards),
        len(read_skipped(folder / SKIPPED)),
        sum(size for shard in shards for size, _ in shard.files.values()),
    )
