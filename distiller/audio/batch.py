"""Padded audio: the batch of a forward pass, and the batches of an optimiser step."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from distiller.audio.skipped import Skipped


@dataclass
class Batch:
    """Utterances of one forward pass. Without any only when 20 replacements failed; `SkippedLog.add` raises then."""

    waveforms: Tensor  # (batch, sample) float32 at 16 kHz, zero-padded
    lengths: Tensor  # (batch,) int64, samples; always on the CPU, so that reading them never waits for a GPU
    ids: list[str]
    paths: list[str]
    skipped: list[Skipped]  # what was dropped from this batch

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        return replace(self, waveforms=self.waveforms.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        return replace(self, waveforms=self.waveforms.pin_memory(), lengths=self.lengths.pin_memory())


@dataclass
class StepBatch:
    """The micro-batches of one optimiser step on one rank, and its place: the window `index` of `epoch`."""

    batches: list[Batch]
    epoch: int
    index: int

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "StepBatch":
        return replace(self, batches=[batch.to(device, non_blocking) for batch in self.batches])

    def pin_memory(self) -> "StepBatch":
        return replace(self, batches=[batch.pin_memory() for batch in self.batches])
