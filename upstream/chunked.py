"""Wavs of any length in bounded memory: stretches with overlap, each encoded with what it needs of the whole.

Statistics over time (the wav's normalisation, the first convolution's group norm) are those of the whole, exactly, so
that the projected features P are the same. What differs is context: attention and the positional convolution of a
stretch reach no further than `overlap` beyond it.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .config import SAMPLE_RATE
from .encoder import SpeechEncoder
from .errors import UserError
from .extractor import normalize_waveforms


@torch.no_grad()
def stretches(
    encoder: SpeechEncoder, waveform: Tensor, seconds: float = 30.0, overlap: float = 5.0
) -> Iterator[list[Tensor]]:
    """Hidden states of one wav, stretch by stretch; memory is bounded by a stretch, beside the wav itself.

    Args:
        encoder: in eval mode.
        waveform: (sample,), 16 kHz.
        seconds: new audio of a stretch.
        overlap: seconds of context on either side of it.

    Yields:
        F^0..F^L of the frames that follow those before, each (frame, channel).

    Raises:
        UserError: a wav too short for a frame, no audio in a stretch, or a negative overlap.
    """
    config, extractor = encoder.config, encoder.feature_extractor
    size, context = (int(value * SAMPLE_RATE) // extractor.hop for value in (seconds, overlap))
    if size < 1 or context < 0:
        raise UserError(
            f"stretches of {seconds:g} s with {overlap:g} s of overlap are not possible: at least "
            f"{extractor.hop / SAMPLE_RATE:g} s and 0 s are needed"
        )
    if waveform.ndim != 1 or len(waveform) < config.min_samples:
        raise UserError(
            f"a waveform of shape {tuple(waveform.shape)} is not (sample,) with at least {config.min_samples} samples"
        )
    if config.normalize_waveform:
        length = torch.tensor([len(waveform)], device=waveform.device)
        waveform = normalize_waveforms(waveform[None], length, config.normalize_eps)[0]
    moments, frames = extractor.moments(waveform), config.frame_count(len(waveform))
    for start in range(0, frames, size):
        end = min(start + size, frames)
        first, last = max(0, start - context), min(frames, end + context)
        piece = waveform[first * extractor.hop : (last - 1) * extractor.hop + extractor.field]
        projected = encoder.feature_projection(extractor.stretch(piece, moments))[None]
        output = encoder.contextualize(projected, torch.tensor([last - first]))
        yield [states[0, start - first : end - first] for states in output.hidden_states]


def extract(encoder: SpeechEncoder, waveform: Tensor, seconds: float = 30.0, overlap: float = 5.0) -> list[Tensor]:
    """F^0..F^L of one wav, each (frame, channel), put together from `stretches`."""
    return [torch.cat(layer) for layer in zip(*stretches(encoder, waveform, seconds, overlap), strict=True)]
