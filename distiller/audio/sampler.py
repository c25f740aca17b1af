"""Which utterances make each optimiser step."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from lhotse import CutSet
from lhotse.cut.data import DataCut
from lhotse.dataset.sampling import DynamicBucketingSampler
from lhotse.dataset.sampling.dynamic_bucketing import FixedBucketBatchSizeConstraint, estimate_duration_buckets
from lhotse.utils import fastcopy
from torch.utils.data import Sampler

from distiller.common.progress import progress
from upstream.errors import UserError


@dataclass(frozen=True)
class StepBatchPlan:
    """A window before its audio is read."""

    batches: list[CutSet]
    epoch: int
    index: int
    rank: int


class StepBatchSampler(Sampler[StepBatchPlan]):
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

    def __iter__(self) -> Iterator[StepBatchPlan]:
        epoch, done = self.first
        while True:
            for index, batches in enumerate(self.windows(epoch)):
                if index >= done:
                    yield StepBatchPlan(batches, epoch, index, self.rank)
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


def step_batches_per_epoch(sampler: StepBatchSampler) -> int:
    """Windows of epoch 0; later epochs differ by a few. Reads no audio, but takes seconds for 280,000 utterances."""
    return sum(1 for _ in progress(sampler.windows(0), "Planning an epoch"))
