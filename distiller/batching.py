"""Cuts to batches: which utterances make each optimiser step, and the step's audio in padded tensors.

The order is a function of (seed, epoch) and of the corpus and batch settings, whatever the number of workers, and it is
known without reading audio, so that a run continues exactly where it stopped.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from lhotse import CutSet
from lhotse.cut.data import DataCut
from lhotse.dataset.sampling import DynamicBucketingSampler
from lhotse.dataset.sampling.dynamic_bucketing import FixedBucketBatchSizeConstraint, estimate_duration_buckets
from lhotse.utils import fastcopy
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Sampler

from distiller.decoding import Undecodable, decode, source_path
from distiller.progress import progress
from distiller.skipped import Skipped
from upstream.errors import UserError

REPLACEMENTS = 20  # utterances tried in place of a batch of which nothing could be decoded


@dataclass
class Batch:
    """Utterances of one forward pass. Without any only when 20 replacements failed; `SkippedLog.add` raises then."""

    waveforms: Tensor  # (batch, sample) float32 at 16 kHz, zero-padded
    lengths: Tensor  # (batch,) int64, samples
    ids: list[str]
    paths: list[str]
    skipped: list[Skipped]  # what was dropped from this batch

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        return replace(
            self,
            waveforms=self.waveforms.to(device, non_blocking=non_blocking),
            lengths=self.lengths.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> "Batch":
        return replace(self, waveforms=self.waveforms.pin_memory(), lengths=self.lengths.pin_memory())


@dataclass
class Window:
    """The micro-batches of one optimiser step on one rank, and its place: the window `index` of `epoch`."""

    batches: list[Batch]
    epoch: int
    index: int

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Window":
        return replace(self, batches=[batch.to(device, non_blocking) for batch in self.batches])

    def pin_memory(self) -> "Window":
        return replace(self, batches=[batch.pin_memory() for batch in self.batches])


@dataclass(frozen=True)
class WindowPlan:
    """A window before its audio is read."""

    batches: list[CutSet]
    epoch: int
    index: int
    rank: int


class WindowSampler(Sampler[WindowPlan]):
    """The endless stream of one rank's windows, epoch after epoch, by Lhotse's dynamic bucketing.

    Each epoch is a new permutation of the corpus. Its batches go to the ranks in turn: a step's are disjoint, and every
    rank has equally many. At an epoch's end Lhotse spreads what is left over the ranks; where that is less than an
    utterance each, some come twice (fewer than `world_size`, under the id ID_dup0). The batches of an epoch that fill
    no whole window, at most `accumulate` - 1 per rank and different ones each time, are left out; all else comes once.

    A batch holds at most `batch_seconds`, padding included, and as many utterances as any other of its bucket. A longer
    utterance would come as a batch of its own, but `open_corpus` leaves those out.

    Args:
        batch_seconds: of one batch, that is of one rank and one of the `accumulate` batches of a window.
        buckets: fewer are made for a corpus of fewer utterances.
    """

    def __init__(
        self,
        cuts: CutSet,
        batch_seconds: float,
        buckets: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
    ) -> None:
        self.cuts = list(cuts)
        self.batch_seconds, self.seed = batch_seconds, seed
        self.rank, self.world_size, self.accumulate = rank, world_size, accumulate
        buckets = min(buckets, len(self.cuts))
        self.bounds = estimate_duration_buckets(self.cuts, buckets) if buckets > 1 else []  # between the buckets
        # Lhotse's limit on the seconds of a batch is exceeded when its last utterance is its longest, this one never.
        longest = [*self.bounds, max(cut.duration for cut in self.cuts)]  # of each bucket
        sizes = [max(1, int(batch_seconds / seconds)) for seconds in longest]  # utterances of a batch
        self.constraint = FixedBucketBatchSizeConstraint(longest, sizes)
        # A few rounds of batches for every rank in each bucket, so that batches are full until the epoch's end.
        self.buffer = max(2_000, 4 * world_size * sum(sizes))
        self.start(0, 0)

    def start(self, epoch: int, done: int) -> None:
        """Let the stream begin after `done` windows of `epoch`."""
        self.first = (epoch, done)

    def __iter__(self) -> Iterator[WindowPlan]:
        epoch, done = self.first
        while True:
            for index, batches in enumerate(self.windows(epoch)):
                if index >= done:
                    yield WindowPlan(batches, epoch, index, self.rank)
            epoch, done = epoch + 1, 0

    def windows(self, epoch: int) -> Iterator[list[CutSet]]:
        """One epoch.

        Raises:
            UserError: the corpus does not fill one window.
        """
        window: list[CutSet] = []
        made = 0
        for batch in self._batches(epoch):
            window.append(batch)
            if len(window) == self.accumulate:
                yield window
                window, made = [], made + 1
        if not made:
            raise UserError(
                f"an epoch of the corpus makes {len(window)} batches a device, fewer than trainer.accumulate "
                f"({self.accumulate}); lower that or corpus.batch_seconds ({self.batch_seconds:g})"
            )

    def _batches(self, epoch: int) -> Iterator[CutSet]:
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(len(self.cuts))
        return iter(
            DynamicBucketingSampler(
                (_copy(self.cuts[index]) for index in order),
                constraint=self.constraint,
                duration_bins=self.bounds,
                shuffle=True,
                buffer_size=self.buffer,
                seed=int(random.integers(2**32)),
                rank=self.rank,
                world_size=self.world_size,
                sync_buckets=True,  # without it Lhotse 1.33 may end an epoch early, and utterances are lost
            )
        )


def _copy(cut: DataCut) -> DataCut:
    """Lhotse writes into `custom` of what it yields."""
    return fastcopy(cut, custom=None if cut.custom is None else dict(cut.custom))


def windows_per_epoch(sampler: WindowSampler) -> int:
    """Windows of epoch 0; later epochs differ by a few. Reads no audio, but takes seconds for 280,000 utterances."""
    return sum(1 for _ in progress(sampler.windows(0), "Planning an epoch"))


class AudioDataset(Dataset[Window]):
    """Reads the audio of a window: `DataLoader(AudioDataset(cuts, seed), sampler=WindowSampler(...), batch_size=None)`.

    What cannot be decoded is dropped from its batch. A batch left empty becomes one utterance, drawn from `cuts` by
    (seed, epoch, index, rank).
    """

    def __init__(self, cuts: CutSet, seed: int, min_samples: int = 400) -> None:
        self.cuts, self.seed, self.min_samples = list(cuts), seed, min_samples

    def __getitem__(self, plan: WindowPlan) -> Window:
        random = np.random.default_rng([self.seed, plan.epoch, plan.index, plan.rank])
        batches = [load_batch(cuts, self.cuts, random, self.min_samples) for cuts in plan.batches]
        return Window(batches, plan.epoch, plan.index)


def load_batch(cuts: Iterable[DataCut], others: list[DataCut], random: np.random.Generator, min_samples: int) -> Batch:
    """Decode cuts into a batch; if none can be decoded, one drawn from `others`, or nothing after 20 failures."""
    skipped: list[Skipped] = []
    decoded = [pair for cut in cuts if (pair := _decoded(cut, min_samples, skipped))]
    attempts = 0
    while not decoded and attempts < REPLACEMENTS:
        drawn = _decoded(others[random.integers(len(others))], min_samples, skipped)
        decoded, attempts = [drawn] if drawn else [], attempts + 1
    waveforms = [waveform for _, waveform in decoded]
    return Batch(
        pad_sequence(waveforms, batch_first=True) if waveforms else torch.zeros(0, 0),
        torch.tensor([len(waveform) for waveform in waveforms], dtype=torch.int64),
        [cut.id for cut, _ in decoded],
        [source_path(cut) for cut, _ in decoded],
        skipped,
    )


def _decoded(cut: DataCut, min_samples: int, skipped: list[Skipped]) -> tuple[DataCut, Tensor] | None:
    try:
        return cut, decode(cut, min_samples)
    except Undecodable as error:
        skipped.append(Skipped(source_path(cut), str(error)))
        return None


def validation_batches(cuts: CutSet, batch_seconds: float, min_samples: int = 400) -> list[Callable[[], Batch]]:
    """The same batches at each call, shortest utterances first, each of which is read when it is called."""
    groups: list[list[DataCut]] = [[]]
    for cut in sorted(cuts, key=lambda cut: (cut.duration, cut.id)):
        if groups[-1] and (len(groups[-1]) + 1) * cut.duration > batch_seconds:
            groups.append([])
        groups[-1].append(cut)
    return [partial(_validation_batch, group, list(cuts), index, min_samples) for index, group in enumerate(groups)]


def _validation_batch(group: list[DataCut], others: list[DataCut], index: int, min_samples: int) -> Batch:
    batch = load_batch(group, others, np.random.default_rng(index), min_samples)
    if not batch.ids:
        raise UserError(
            f"audio to validate or to compare on cannot be read: {batch.skipped[-1].path} ({batch.skipped[-1].reason})"
        )
    return batch


@contextmanager
def lost_workers(setting: str) -> Iterator[None]:
    """Around whatever takes from a DataLoader with workers, one of which the system may kill.

    Args:
        setting: what says how many there are, for the user.

    Raises:
        UserError: one was killed.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(
            error
        ):  # an error of its own is said to be caught "in DataLoader worker"
            raise
        raise UserError(
            "a worker process was killed, perhaps for want of memory; run the same command again to continue, "
            f"with fewer {setting}"
        ) from error
