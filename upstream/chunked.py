"""Wavs of any length in bounded memory: overlapping chunks, encoded with the statistics of the whole wav.

Statistics over time (the wav's normalisation, the first convolution's group norm) are exact, and so the projected
features P are the same. The difference is in the context: attention and the positional convolution of a chunk see only
`overlap` seconds beyond it.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .config import SAMPLE_RATE
from .encoder import SpeechEncoder
from .errors import UserError, require
from .extractor import normalize_waveforms


@torch.no_grad()
def chunks(
    encoder: SpeechEncoder, waveform: Tensor, seconds: float = 30.0, overlap: float = 5.0
) -> Iterator[list[Tensor]]:
    """Hidden states of a wav, chunk by chunk; memory is bounded by a chunk, besides the wav itself.

    Args:
        encoder: in eval mode.
        waveform: (sample,), 16 kHz.
        seconds: new audio in a chunk.
        overlap: seconds of context on either side of it.

    Yields:
        F^0..F^L of the frames that follow the previous ones, each (frame, channel).

    Raises:
        UserError: a wav too short for a frame, a chunk without audio, or a negative overlap.
    """
    config, extractor = encoder.config, encoder.feature_extractor
    size, context = (int(value * SAMPLE_RATE) // extractor.hop for value in (seconds, overlap))
    require(size >= 1, "the length of a chunk", seconds, f"at least {extractor.hop / SAMPLE_RATE:g} seconds")
    require(context >= 0, "the overlap of chunks", overlap, "at least 0 seconds")
    if waveform.ndim != 1 or len(waveform) < config.min_samples:
        shape = tuple(waveform.shape)
        raise UserError(f"the waveform has shape {shape}, but it must be (sample,) of at least {config.min_samples}")
    if config.normalize_waveform:
        waveform = normalize_waveforms(waveform[None], torch.tensor([len(waveform)]), config.normalize_eps)[0]
    moments, frames = extractor.moments(waveform), config.frame_count(len(waveform))
    for start in range(0, frames, size):
        end = min(start + size, frames)
        first, last = max(0, start - context), min(frames, end + context)
        chunk = waveform[first * extractor.hop : (last - 1) * extractor.hop + extractor.field]
        projected = encoder.feature_projection(extractor.chunk(chunk, moments))[None]
        output = encoder.contextualize(projected, torch.tensor([last - first]))
        yield [states[0, start - first : end - first] for states in output.hidden_states]


def extract(encoder: SpeechEncoder, waveform: Tensor, seconds: float = 30.0, overlap: float = 5.0) -> list[Tensor]:
    """F^0..F^L of a wav, each (frame, channel), computed chunk by chunk."""
    return [torch.cat(layer) for layer in zip(*chunks(encoder, waveform, seconds, overlap), strict=True)]
