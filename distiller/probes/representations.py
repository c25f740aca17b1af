"""The probed representations: the layers of an encoder, and log-mel energies for comparison."""

from collections.abc import Callable, Iterator, Sequence

import torch
import torchaudio
from torch import Tensor
from torch.nn import functional as F

from distiller.augmentation.conditions import Degrade
from distiller.common.progress import progress
from upstream.config import SAMPLE_RATE
from upstream.encoder import SpeechEncoder

CONTEXT = 12  # frames to either side of the stacked filterbank
MELS = 40
FRAME, HOP = 400, 320  # samples; those of the encoders
BATCH = 8

Layers = list[Tensor]  # per layer (frame, channel) of one utterance
Representation = Callable[[list[Tensor]], Iterator[Layers]]  # waveforms -> one entry per utterance


def encoder_layers(encoder: SpeechEncoder) -> Representation:
    """F^1..F^L of an encoder."""

    @torch.inference_mode()
    def represent(waveforms: list[Tensor]) -> Iterator[Layers]:
        lengths = torch.tensor([len(waveform) for waveform in waveforms])
        output = encoder(torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True), lengths)
        for index, frames in enumerate(output.frame_lengths.tolist()):
            yield [state[index, :frames] for state in output.hidden_states[1:]]

    return represent


def filterbank(context: int = 0) -> Representation:
    """Log-mel energies on the encoders' frames (400 samples every 320), optionally stacked over +-`context` frames."""
    mel = torchaudio.transforms.MelSpectrogram(SAMPLE_RATE, n_fft=FRAME, hop_length=HOP, n_mels=MELS, center=False)

    def represent(waveforms: list[Tensor]) -> Iterator[Layers]:
        for waveform in waveforms:
            energies = torch.log(mel(waveform) + 1e-6).T  # (frame, mel)
            padded = F.pad(energies.T, (context, context), mode="replicate").T if context else energies
            yield [torch.cat([padded[shift : shift + len(energies)] for shift in range(2 * context + 1)], dim=1)]

    return represent


def represented(represent: Representation, waveforms: Sequence[Tensor], title: str) -> Iterator[tuple[int, Layers]]:
    """The index and the layers of every waveform, computed in batches; similar lengths together, shortest first."""
    order = sorted(range(len(waveforms)), key=lambda index: len(waveforms[index]))
    for start in progress(range(0, len(order), BATCH), title):
        batch = order[start : start + BATCH]
        yield from zip(batch, represent([waveforms[index] for index in batch]), strict=True)


def degraded(represent: Representation, degrade: Degrade | None) -> Representation:
    """The representation of waveforms after `degrade`."""
    if degrade is None:
        return represent

    def hear(waveforms: list[Tensor]) -> Iterator[Layers]:
        yield from represent([degrade(waveform) for waveform in waveforms])

    return hear
