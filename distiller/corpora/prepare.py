"""Decoding a corpus once, into Lhotse Shar of 16 kHz mono audio, which training reads faster than the original files.

Work is done shard by shard in processes of torch's DataLoader, which end when this one is killed. Each file of a shard
is written atomically, its record last. An interrupted preparation keeps the shards that have a record and the bytes it
promises, and makes the others.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lhotse.cut.data import DataCut
from torch.utils.data import DataLoader

from distiller.audio.skipped import Skipped, check_share, countable, skipped_count, write_skipped
from distiller.common.files import expanded, lock_folder, sweep, write_json
from distiller.common.progress import progress
from distiller.common.values import difference
from distiller.common.workers import lost_workers
from distiller.corpora import prepared as layout
from distiller.corpora.prepared import PREPARATION, SKIPPED, Shard, ShardPlan, is_prepared
from distiller.corpora.scanning import locate, scan_cached
from distiller.corpora.shards import Format, write_shard
from upstream.errors import UserError

SCAN = "scan"  # folder for the results of scanning
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

    def __str__(self) -> str:
        text = (
            f"{self.folder}: {self.utterances:,} utterances, {self.seconds / 3600:,.2f} hours, {self.shards:,} shards, "
            f"{self.bytes / 1e9:,.2f} GB, all intact"
        )
        return text + (f"\n{self.skipped:,} utterances skipped, see {self.folder / SKIPPED}" if self.skipped else "")


class DamagedShards(UserError):
    """Shards of a complete prepared corpus are missing or damaged."""


def prepare(
    corpus: Path,
    output: Path,
    subsets: Sequence[str] = (),
    format: Format = "wav",
    workers: int = 1,
    max_skipped: float = 0.01,
    shard_seconds: float = SHARD_SECONDS,
) -> Prepared:
    """Decode a corpus, or some of its subsets, into `output`; shards that are intact there are kept.

    Args:
        corpus: any that `open_corpus` takes, except the synthetic one.
        workers: processes; 0 works in this one.
        max_skipped: share of the utterances that may be unusable.

    Raises:
        UserError: as `open_corpus`; `output` cannot be written, or holds another corpus or other files; the corpus, or
            a worker, disappeared.
    """
    corpus, subsets = expanded(corpus).absolute(), list(subsets)
    settings = {
        "version": layout.VERSION, "corpus": str(corpus), "subsets": subsets, "format": format,
        "shard_seconds": shard_seconds,
    }  # fmt: skip
    with lock_folder(output):
        if _is_complete(output, settings):
            with suppress(DamagedShards):
                return verify(output, workers)
        sweep(output)
        root, sources = locate(corpus, subsets)
        if is_prepared(root):
            raise UserError(f"{corpus} is already prepared; use it as --corpus of run.py")
        names = subsets or [layout.ALL]
        scans = [scan_cached(source, root, output / SCAN) for source in sources]
        write_json(output / PREPARATION, settings)
        plans = {name: plan_shards(name, cuts, shard_seconds) for name, (cuts, _) in zip(names, scans, strict=True)}
        work = [plan for name in names for plan in plans[name]]
        skipped = [row for _, rows in scans for row in rows]
        total = sum(len(cuts) for cuts, _ in scans) + len(countable(skipped))

        def check() -> None:
            write_skipped(output / SKIPPED, skipped)
            check_share(len(countable(skipped)), total, max_skipped, f"{output / SKIPPED} says why", "--max-skipped")

        check()
        shards: list[Shard] = []
        for shard in _in_processes(partial(write_shard, folder=output, format=format), work, workers, "Preparing"):
            shards.append(shard)
            if shard.skipped:
                skipped += [Skipped(*row) for row in shard.skipped]
                check()
        top_folders = [] if subsets else layout.parts([cut.id for cuts, _ in scans for cut in cuts])
        counts = {name: len(plans[name]) for name in names}
        write_json(output / PREPARATION, settings | {"shards": counts, "parts": top_folders})
        return _summary(output, shards)


def _is_complete(output: Path, settings: dict[str, Any]) -> bool:
    """Whether `output` holds the same preparation, complete.

    Raises:
        UserError: it holds another one, or other files.
    """
    if not is_prepared(output):
        foreign = sorted(path.name for path in output.iterdir() if path.name[0] != "." and path.name != SCAN)
        if foreign:
            raise UserError(f"{output} is not a prepared corpus (it holds {foreign[0]}); choose another --output")
        return False
    before = layout.read_preparation(output)
    if key := difference({name: before.get(name) for name in settings}, settings):
        raise UserError(f"{output} was prepared with another {key}; choose another --output")
    return "shards" in before


def verify(folder: Path, workers: int = 1) -> Prepared:
    """Check every byte of a prepared corpus.

    Raises:
        DamagedShards: shards are missing or damaged; names the first.
        UserError: it is not complete.
    """
    if not is_prepared(folder):
        raise UserError(f"{folder} is not a prepared corpus: it has no {PREPARATION}")
    work = [plan for plans in layout.shard_plans(folder).values() for plan in plans]
    shards = list(_in_processes(partial(layout.intact, folder=folder), work, workers, "Verifying"))
    damaged = [plan for plan, shard in zip(work, shards, strict=True) if shard is None]
    if damaged:
        raise DamagedShards(
            f"{len(damaged)} of {len(work)} shards are missing or damaged, the first of them "
            f"{folder / damaged[0].files[1]}; run the same `corpus.py prepare` again to replace them"
        )
    return _summary(folder, [shard for shard in shards if shard is not None])


def plan_shards(name: str, cuts: list[DataCut], seconds: float) -> list[ShardPlan]:
    """Consecutive cuts in shards of about `seconds` each; a function of the cuts alone."""
    groups: list[list[DataCut]] = []
    filled = seconds
    for cut in cuts:
        if filled >= seconds:
            groups.append([])
            filled = 0.0
        groups[-1].append(cut)
        filled += cut.duration
    return [ShardPlan(name, index, group) for index, group in enumerate(groups)]


def _in_processes(
    function: Callable[[ShardPlan], Any], work: list[ShardPlan], workers: int, title: str
) -> Iterator[Any]:
    """The results of `function`, in order, computed by worker processes.

    Raises:
        UserError: as `function`; a worker was killed.
    """
    collate, processes = partial(_result_or_error, function), min(workers, len(work))
    loader = DataLoader(work, batch_size=None, num_workers=processes, collate_fn=collate)  # type: ignore[arg-type]
    with lost_workers("--workers"):
        for result in progress(loader, title, len(work)):
            if isinstance(result, UserError):
                raise result
            yield result


def _result_or_error(function: Callable[[ShardPlan], Any], plan: ShardPlan) -> Any:
    """An error is returned, because exceptions raised in a worker lose their message."""
    try:
        return function(plan)
    except UserError as error:
        return error


def _summary(folder: Path, shards: list[Shard]) -> Prepared:
    return Prepared(
        folder,
        len(shards),
        sum(shard.utterances for shard in shards),
        sum(shard.seconds for shard in shards),
        skipped_count(folder / SKIPPED),
        sum(size for shard in shards for size, _ in shard.files.values()),
    )
