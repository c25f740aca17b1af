"""Cuts to batches: audio in padded tensors.

The order is a function of (seed, epoch), the corpus and the batch settings, whatever the number of workers. It is known
without reading audio, so a run continues exactly where it stopped.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from lhotse.cut.data import DataCut
from torch import Tensor
from torch.utils.data import Dataset

from distiller.audio.batch import Batch
from distiller.audio.decoding import Decoder, Undecodable, source_path
from distiller.audio.sampler import BatchPlan
from distiller.audio.skipped import Skipped

REPLACEMENTS = 20  # utterances tried in place of a batch that could not be decoded at all


class AudioDataset(Dataset[Batch]):
    """Reads the audio of a batch.

    Use: `DataLoader(AudioDataset(cuts, decoder, seed), sampler=StepBatchSampler(...), batch_size=None)`.

    Undecodable utterances are dropped from their batch. An empty batch is replaced by one utterance, drawn from `cuts`
    by (seed, epoch, index, rank, part).

    Args:
        augment: adds the student's input to a batch; None: the student gets the teacher's input.
    """

    def __init__(
        self, cuts: list[DataCut], decoder: Decoder, seed: int, augment: Callable[[Batch], Batch] | None = None
    ) -> None:
        self.cuts, self.decoder, self.seed, self.augment = cuts, decoder, seed, augment

    def __getitem__(self, plan: BatchPlan) -> Batch:
        random = np.random.default_rng([self.seed, plan.epoch, plan.index, plan.rank, plan.part])
        batch = load_batch(plan.cuts, self.cuts, self.decoder, random, plan.samples)
        batch = replace(batch, position=(plan.epoch, plan.index))
        return batch if self.augment is None else self.augment(batch)


def load_batch(
    cuts: Iterable[DataCut], others: list[DataCut], decoder: Decoder, random: np.random.Generator, samples: int = 0
) -> Batch:
    """Decode cuts into a batch; if none can be decoded, one drawn from `others`, or nothing after 20 failures.

    Args:
        samples: length to pad to, or the longest of the batch if that is more.
    """
    skipped: list[Skipped] = []

    def decoded(cut: DataCut) -> list[tuple[DataCut, Tensor]]:
        try:
            return [(cut, decoder.decode(cut))]
        except Undecodable as error:
            skipped.append(Skipped(source_path(cut), str(error)))
            return []

    pairs = [pair for cut in cuts for pair in decoded(cut)]
    attempts = 0
    while not pairs and attempts < REPLACEMENTS:
        pairs, attempts = decoded(others[random.integers(len(others))]), attempts + 1
    lengths = [len(waveform) for _, waveform in pairs]
    waveforms = torch.zeros(len(pairs), max([samples, *lengths]))  # (batch, sample)
    for row, (_, waveform) in zip(waveforms, pairs, strict=True):
        row[: len(waveform)] = waveform
    return Batch(
        waveforms,
        torch.tensor(lengths, dtype=torch.int64),
        [cut.id for cut, _ in pairs],
        [source_path(cut) for cut, _ in pairs],
        skipped,
    )


def by_duration(cuts: Iterable[DataCut], batch_seconds: float) -> list[list[DataCut]]:
    """The cuts in batches of at most `batch_seconds`, padding included, shortest first; longer cuts alone."""
    groups: list[list[DataCut]] = [[]]
    for cut in sorted(cuts, key=lambda cut: (cut.duration, cut.id)):
        if groups[-1] and (len(groups[-1]) + 1) * cut.duration > batch_seconds:
            groups.append([])
        groups[-1].append(cut)
    return groups


def validation_batches(cuts: list[DataCut], batch_seconds: float, decoder: Decoder) -> list[Callable[[], Batch]]:
    """The same batches at each call, shortest utterances first; each is read when it is called.

    A batch raises UserError when nothing of it can be decoded.
    """
    groups = by_duration(cuts, batch_seconds)
    return [partial(_validation_batch, group, cuts, decoder, index) for index, group in enumerate(groups)]


def _validation_batch(group: list[DataCut], others: list[DataCut], decoder: Decoder, index: int) -> Batch:
    return load_batch(group, others, decoder, np.random.default_rng(index)).require_audio()
