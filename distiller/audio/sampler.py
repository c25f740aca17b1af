"""Which utterances are in each optimiser step, and how long their batches are."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from lhotse.cut.data import DataCut
from lhotse.dataset.sampling import DynamicBucketingSampler
from lhotse.dataset.sampling.dynamic_bucketing import FixedBucketBatchSizeConstraint, estimate_duration_buckets
from lhotse.utils import fastcopy
from torch.utils.data import Sampler

from distiller.common.progress import progress
from upstream.config import SAMPLE_RATE
from upstream.errors import UserError

HOP = 320  # samples: lengths are rounded up to whole frames


@dataclass(frozen=True)
class BatchPlan:
    """A Batch before its audio is read: number `part` of step `index` of `epoch` on one rank."""

    cuts: list[DataCut]
    samples: int  # length that each is padded to
    epoch: int
    index: int
    part: int
    rank: int


class StepBatchSampler(Sampler[BatchPlan]):
    """The endless stream of one rank's batches, step after step and epoch after epoch, by Lhotse's dynamic bucketing.

    Each epoch is a new permutation of the corpus. Its batches are dealt to the ranks in turn: batches of one step are
    disjoint, and every rank gets equally many. At the end of an epoch Lhotse spreads the remaining utterances over the
    ranks; if there are fewer than ranks, some are repeated (fewer than `world_size`, as ID_dup0). Batches that do not
    fill a last step, at most `accumulate` - 1 per rank and different ones in each epoch, are dropped; every other
    utterance is used once.

    A batch holds at most `batch_seconds`, padding included. All batches of a bucket have the same shape: as many
    utterances, padded to the bucket's longest. Only the batches that use up a bucket at the end of an epoch hold fewer.
    A longer utterance would be a batch by itself, but `open_corpus` leaves those out.

    Args:
        batch_seconds: of one batch, that is, of one rank and one of the `accumulate` batches of a step.
        buckets: by duration; a corpus of fewer utterances gets fewer.
    """

    def __init__(
        self,
        cuts: list[DataCut],
        batch_seconds: float,
        buckets: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
    ) -> None:
        self.cuts = cuts
        self.batch_seconds, self.seed = batch_seconds, seed
        self.rank, self.world_size, self.accumulate = rank, world_size, accumulate
        buckets = min(buckets, len(cuts))
        self.bounds = estimate_duration_buckets(cuts, buckets) if buckets > 1 else []  # between the buckets
        # Lhotse's limit on the seconds of a batch can be exceeded by its last utterance; a limit on its size cannot.
        longest = [*self.bounds, max(cut.duration for cut in cuts)]  # of each bucket
        sizes = [max(1, int(batch_seconds / seconds)) for seconds in longest]  # utterances of a batch
        self.constraint = FixedBucketBatchSizeConstraint(longest, sizes)
        self.samples = [0] * len(sizes)  # of a batch's utterances, padding included
        for cut in cuts:
            bucket = self._bucket(cut)
            self.samples[bucket] = max(self.samples[bucket], math.ceil(cut.duration * SAMPLE_RATE / HOP) * HOP)
        most = [int(batch_seconds * SAMPLE_RATE / size) for size in sizes]
        self.samples = [min(pair) for pair in zip(self.samples, most, strict=True)]
        # Several batches for every rank in each bucket, so that batches are full until the end of an epoch.
        self.buffer = max(2_000, 4 * world_size * sum(sizes))
        self.start(0, 0)

    def start(self, epoch: int, done: int) -> None:
        """Start the stream after the first `done` step batches of `epoch`."""
        self.first = (epoch, done)

    def __iter__(self) -> Iterator[BatchPlan]:
        epoch, done = self.first
        while True:
            for index, batches in enumerate(self.step_batches(epoch)):
                if index >= done:
                    for part, cuts in enumerate(batches):
                        samples = self.samples[self._bucket(cuts[0])]
                        yield BatchPlan(cuts, samples, epoch, index, part, self.rank)
            epoch, done = epoch + 1, 0

    def step_batches(self, epoch: int) -> Iterator[list[list[DataCut]]]:
        """The batches of each step of one epoch.

        Raises:
            UserError: the corpus is too small for one step.
        """
        batches: list[list[DataCut]] = []
        steps = 0
        for batch in self._batches(epoch):
            batches.append(batch)
            if len(batches) == self.accumulate:
                yield batches
                batches, steps = [], steps + 1
        if not steps:
            raise UserError(
                f"one epoch gives only {len(batches)} batches per device, fewer than trainer.accumulate "
                f"({self.accumulate}); lower trainer.accumulate or corpus.batch_seconds ({self.batch_seconds:g})"
            )

    def _batches(self, epoch: int) -> Iterator[list[DataCut]]:
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(len(self.cuts))
        batches = DynamicBucketingSampler(
            (_copy(self.cuts[index]) for index in order),
            constraint=self.constraint,
            duration_bins=self.bounds,
            shuffle=True,
            buffer_size=self.buffer,
            seed=int(random.integers(2**32)),
            rank=self.rank,
            world_size=self.world_size,
            sync_buckets=True,  # without it Lhotse 1.33 may end an epoch early and lose utterances
        )
        return map(list, batches)

    def _bucket(self, cut: DataCut) -> int:
        return self.constraint.select_bucket(self.bounds, cut)


def _copy(cut: DataCut) -> DataCut:
    """Lhotse writes into `custom` of the cuts it yields."""
    return fastcopy(cut, custom=None if cut.custom is None else dict(cut.custom))


def step_batches_per_epoch(sampler: StepBatchSampler) -> int:
    """The number in epoch 0; later epochs differ slightly. Reads no audio, but takes seconds for 280,000 utterances."""
    return sum(1 for _ in progress(sampler.step_batches(0), "Planning an epoch"))
