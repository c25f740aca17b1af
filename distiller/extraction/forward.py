"""Recordings through an encoder: in batches of similar lengths, the long ones in chunks."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from lhotse.cut.data import DataCut
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from distiller.audio.batch import Batch
from distiller.audio.dataset import by_duration, load_batch
from distiller.audio.decoding import Decoder, source_path
from distiller.audio.skipped import Skipped
from distiller.common.workers import batch_bytes, loader_options, lost_workers
from upstream.chunked import outputs
from upstream.config import SAMPLE_RATE
from upstream.encoder import EncoderOutput, SpeechEncoder
from upstream.errors import UserError

# Selects the values to keep from an output: (batch, frame, ...), on its device
Select = Callable[[EncoderOutput], Tensor]


@dataclass(frozen=True)
class Pace:
    """Where and how recordings are computed; nothing but `chunk_seconds` changes the results beyond rounding."""

    device: str = "cpu"
    batch_seconds: float = 100.0  # of audio in a forward pass, padding included
    chunk_seconds: float = math.inf  # longer recordings are computed in chunks of this length
    workers: int = 0  # decoding processes
    processes: int = 1  # processes on this machine that do the same


class Group(NamedTuple):
    """The recordings of one forward pass, and the number of the part that they belong to."""

    part: int
    ids: list[str]
    values: list[Tensor]  # (frame, ...) of each, on the CPU
    skipped: list[Skipped]  # those that cannot be decoded


class _Groups(Dataset[Batch]):
    def __init__(self, groups: Sequence[list[DataCut]], decoder: Decoder) -> None:
        self.groups, self.decoder = groups, decoder

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Batch:
        group = self.groups[index]
        return load_batch(group, group, self.decoder, np.random.default_rng(0))


def forward(encoder: SpeechEncoder, parts: Sequence[Sequence[DataCut]], select: Select, pace: Pace) -> Iterator[Group]:
    """The values that `select` keeps for each recording, part after part, shortest first within a part.

    Args:
        encoder: in eval mode, on the device.
        parts: recordings that the encoder takes, see `short_enough`.

    Raises:
        UserError: the device's memory is full, or a worker process is lost.
    """
    chunk_seconds = pace.chunk_seconds if not encoder.config.max_samples else math.inf
    numbers, groups = [], []
    for number, cuts in enumerate(parts):
        short = [cut for cut in cuts if cut.duration <= chunk_seconds]
        long = [[cut] for cut in cuts if cut.duration > chunk_seconds]
        of_part = [group for group in by_duration(short, pace.batch_seconds) if group] + long
        groups += of_part
        numbers += [number] * len(of_part)
    largest = max((len(group) * max(cut.duration for cut in group) for group in groups), default=0.0)
    options = loader_options(pace.workers, batch_bytes(largest), pace.processes, "--workers")
    batches = DataLoader(_Groups(groups, Decoder(encoder.config.min_samples)), batch_size=None, **options)
    with lost_workers("--workers"):
        for number, batch in zip(numbers, batches, strict=True):
            values = _values(encoder, batch, select, pace.device, chunk_seconds) if batch.ids else []
            yield Group(number, batch.ids, values, list(dict.fromkeys(batch.skipped)))


@torch.no_grad()
def _values(encoder: SpeechEncoder, batch: Batch, select: Select, device: str, chunk_seconds: float) -> list[Tensor]:
    """The kept values of each recording of a batch, (frame, ...)."""
    batch = batch.to(device)
    try:
        if len(batch.ids) == 1 and int(batch.lengths) > chunk_seconds * SAMPLE_RATE:
            chunks = outputs(encoder, batch.waveforms[0], chunk_seconds)
            return [torch.cat([select(output)[0].cpu() for output in chunks])]
        output = encoder(batch.waveforms, batch.lengths)
        rows = zip(select(output), output.frame_lengths.tolist(), strict=True)
        return [row[:frames].cpu() for row, frames in rows]
    except torch.OutOfMemoryError as error:
        raise UserError(f"the memory of {device} is full; give a smaller --batch-seconds or --chunk-seconds") from error


def short_enough(encoder: SpeechEncoder, cuts: Sequence[DataCut], skipped: list[Skipped]) -> list[DataCut]:
    """The recordings that the encoder accepts; Whisper has no chunks, so those of more than 30 s go to `skipped`."""
    limit = encoder.config.max_samples / SAMPLE_RATE or math.inf
    reason = f"it is longer than {limit:g} s, the most that this encoder takes"
    skipped += [Skipped(source_path(cut), reason) for cut in cuts if cut.duration > limit]
    return [cut for cut in cuts if cut.duration <= limit]
