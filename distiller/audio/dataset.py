"""Cuts to batches: which utterances make each optimiser step, and the step's audio in padded tensors.

The order is a function of (seed, epoch) and of the corpus and batch settings, whatever the number of workers, and it is
known without reading audio, so that a run continues exactly where it stopped.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from lhotse import CutSet
from lhotse.cut.data import DataCut
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from distiller.audio.batch import Batch, StepBatch
from distiller.audio.decoding import Undecodable, decode, source_path
from distiller.audio.sampler import StepBatchPlan
from distiller.audio.skipped import Skipped
from upstream.errors import UserError

REPLACEMENTS = 20  # utterances tried in place of a batch of which nothing could be decoded


class AudioDataset(Dataset[StepBatch]):
    """Reads the audio of a step.

    Use: `DataLoader(AudioDataset(cuts, seed), sampler=StepBatchSampler(...), batch_size=None)`.

    What cannot be decoded is dropped from its batch. A batch left empty becomes one utterance, drawn from `cuts` by
    (seed, epoch, index, rank).
    """

    def __init__(self, cuts: CutSet, seed: int, min_samples: int = 400) -> None:
        self.cuts, self.seed, self.min_samples = list(cuts), seed, min_samples

    def __getitem__(self, plan: StepBatchPlan) -> StepBatch:
        random = np.random.default_rng([self.seed, plan.epoch, plan.index, plan.rank])
        batches = [load_batch(cuts, self.cuts, random, self.min_samples) for cuts in plan.batches]
        return StepBatch(batches, plan.epoch, plan.index)


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
