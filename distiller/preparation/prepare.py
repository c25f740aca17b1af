"""Decoding a corpus once, into Lhotse Shar of 16 kHz mono audio, which training reads faster than the original files.

Work is done shard by shard in processes of torch's DataLoader, which end when this one is killed. Each file of a shard
is written atomically, its record last. After an interruption, shards that match their record are kept, and the others
are made again.
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
from distiller.preparation.shards import Format, write_shard
from upstream.errors import UserError, require

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
    corpora: Path | Sequence[Path],
    output: Path,
    subsets: Sequence[str] = (),
    format: Format = "wav",
    workers: int = 1,
    max_skipped: float = 0.01,
    shard_seconds: float = SHARD_SECONDS,
    speeds: Sequence[float] = (1.0,),
) -> Prepared:
    """Decode one or several corpora, or some subsets of one, into `output`; intact shards there are kept.

    Args:
        corpora: any that `open_corpus` takes, except the synthetic one.
        workers: processes; 0 works in this one.
        max_skipped: share of the utterances that may be unusable.
        speeds: factors; every utterance is stored once at each.

    Raises:
        UserError: as `open_corpus`; `output` cannot be written, or holds another corpus or other files; two corpora
            have an id in common; a corpus, or a worker, disappeared.
    """
    paths = [expanded(path).absolute() for path in ([corpora] if isinstance(corpora, Path) else corpora)]
    require(len(set(paths)) == len(paths), "CORPUS", list(map(str, paths)), "a list of different corpora")
    subsets, speeds = list(subsets), sorted(set(speeds), key=lambda speed: (speed != 1, speed))
    settings = {
        "version": layout.VERSION, "corpus": str(paths[0]) if len(paths) == 1 else list(map(str, paths)),
        "subsets": subsets, "format": format, "shard_seconds": shard_seconds, "speeds": speeds,
    }  # fmt: skip
    with lock_folder(output):
        if _is_complete(output, settings):
            with suppress(DamagedShards):
                return verify(output, workers)
        sweep(output)
        found, skipped = _found(paths, subsets, output)
        write_json(output / PREPARATION, settings)
        plans = {name: plan_shards(name, cuts, shard_seconds, speeds) for name, cuts in found.items()}
        work = [plan for plans_of_name in plans.values() for plan in plans_of_name]
        total = sum(map(len, found.values())) * len(speeds) + len(countable(skipped))

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
        top_folders = [] if subsets else layout.parts([cut.id for cuts in found.values() for cut in cuts])
        counts = {name: len(plans[name]) for name in found}
        write_json(output / PREPARATION, settings | {"shards": counts, "parts": top_folders})
        return _summary(output, shards)


def _found(corpora: Sequence[Path], subsets: list[str], output: Path) -> tuple[dict[str, list[DataCut]], list[Skipped]]:
    """The cuts of each subset (of several corpora, or without subsets: of `all`), and what cannot be used.

    Raises:
        UserError: as `prepare`.
    """
    found: dict[str, list[DataCut]] = {name: [] for name in subsets or [layout.ALL]}
    skipped: list[Skipped] = []
    owners: dict[str, Path] = {}
    for corpus in corpora:
        root, sources = locate(corpus, subsets)
        if is_prepared(root):
            raise UserError(f"{corpus} is already prepared; use it as --corpus of run.py")
        for name, source in zip(found, sources, strict=True):
            cuts, rows = scan_cached(source, root, output / SCAN)
            for cut in cuts:
                if (owner := owners.setdefault(cut.id, corpus)) != corpus:
                    raise UserError(
                        f"{owner} and {corpus} both contain {cut.id}; rename it or its parent folder in one of them"
                    )
            found[name] += cuts
            skipped += rows
    return found, skipped


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
    before = {"speeds": [1.0]} | layout.read_preparation(output)  # early versions had no speeds
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


def plan_shards(name: str, cuts: list[DataCut], seconds: float, speeds: Sequence[float] = (1.0,)) -> list[ShardPlan]:
    """Consecutive cuts in shards of about `seconds` each, once for each speed; a function of the cuts alone."""
    groups: list[list[DataCut]] = []
    filled = seconds
    for cut in cuts:
        if filled >= seconds:
            groups.append([])
            filled = 0.0
        groups[-1].append(cut)
        filled += cut.duration
    return [
        ShardPlan(name, index, *plan) for index, plan in enumerate((group, at) for at in speeds for group in groups)
    ]


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
