"""Padded audio: the batch of one forward pass, and the batches of one optimiser step."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from distiller.audio.skipped import Skipped
from upstream.errors import UserError


@dataclass
class Batch:
    """Utterances of one forward pass; empty if neither they nor their replacements could be decoded."""

    waveforms: Tensor  # (batch, sample) float32 at 16 kHz, zero-padded
    lengths: Tensor  # (batch,) int64, samples
    ids: list[str]
    paths: list[str]
    skipped: list[Skipped]  # files dropped from this batch
    position: tuple[int, int] = (0, 0)  # epoch, and index in it, of the step that it is part of
    degraded: Tensor | None = None  # (batch, sample) the student's input in place of `waveforms`; None: the same

    @property
    def heard(self) -> Tensor:
        """The student's waveforms."""
        return self.waveforms if self.degraded is None else self.degraded

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """Move the waveforms; the lengths stay on the CPU, where checking them does not wait for a GPU."""
        return self._with_waveforms(lambda waveforms: waveforms.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        return self._with_waveforms(Tensor.pin_memory)

    def _with_waveforms(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        degraded = None if self.degraded is None else change(self.degraded)
        return replace(self, waveforms=change(self.waveforms), degraded=degraded)

    def require_audio(self) -> "Batch":
        """Returns the batch. Raises: UserError: none of its audio could be decoded."""
        if not self.ids:
            path, reason = self.skipped[-1]
            tried = f"none of the {len(self.skipped)} utterances tried for a batch could be decoded"
            raise UserError(f"{tried}, the last is {path} ({reason})")
        return self


@dataclass
class StepBatch:
    """The batches of one optimiser step on one rank, on the host; it is number `index` of `epoch`."""

    batches: list[Batch]
    epoch: int
    index: int

    @property
    def skipped(self) -> list[Skipped]:
        return [row for batch in self.batches for row in batch.skipped]

    @property
    def utterances(self) -> int:
        return sum(len(batch.ids) for batch in self.batches)


def step_batches_of(batches: Iterable[Batch], accumulate: int) -> Iterator[StepBatch]:
    """Steps of `accumulate` batches each, in the order in which the batches come."""
    for step in zip(*[iter(batches)] * accumulate, strict=False):
        yield StepBatch(list(step), *step[0].position)
