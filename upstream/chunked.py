"""Wavs of any length in bounded memory: overlapping chunks, encoded with the statistics of the whole wav.

Statistics over time (the wav's mean and normalisation, the first convolution's group norm) are exact, and so the
projected features P are the same. The difference is in the context: attention and the positional convolution of a
chunk see only `overlap` seconds beyond it. Streaming encoders (`upstream.streaming`) are exact.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .config import SAMPLE_RATE
from .encoder import EncoderOutput, SpeechEncoder, together
from .errors import UserError, require
from .extractor import FeatureExtractor
from .streaming import Stream
from .waveforms import as_batch

SECONDS, OVERLAP = 30.0, 5.0


@torch.no_grad()
def outputs(
    encoder: SpeechEncoder, waveform: Any, seconds: float = SECONDS, overlap: float = OVERLAP
) -> Iterator[EncoderOutput]:
    """The output for a wav, chunk by chunk; memory is bounded by a chunk, besides the wav itself.

    Args:
        encoder: in eval mode.
        waveform: one wav, (sample,) or anything else that `as_batch` takes, 16 kHz.
        seconds: new audio in a chunk.
        overlap: seconds of context on either side of it.

    Yields:
        An output for a batch of one: the frames that follow the previous ones.

    Raises:
        UserError: as `as_batch`; several wavs, a chunk without audio, or a negative overlap.
    """
    config, extractor = encoder.config, encoder.feature_extractor
    if not isinstance(extractor, FeatureExtractor):
        limit = config.max_samples / SAMPLE_RATE
        raise UserError(f"Whisper takes wavs of at most {limit:g} s and cannot be computed in chunks; cut longer ones")
    size, context = (int(value * SAMPLE_RATE) // extractor.hop for value in (seconds, overlap))
    require(size >= 1, "the length of a chunk", seconds, f"at least {extractor.hop / SAMPLE_RATE:g} seconds")
    require(context >= 0, "the overlap of chunks", overlap, "at least 0 seconds")
    weight = next(extractor.parameters())
    waveforms, lengths = as_batch(waveform, None, weight, config.min_samples)
    if len(waveforms) > 1:
        raise UserError(f"the audio holds {len(waveforms)} wavs, but it must be one, which is cut into chunks")
    if config.chunk_frames:
        yield from _streamed(encoder, waveforms, size * extractor.hop)
        return
    waveforms = encoder.prepare(waveforms, lengths).to(weight.dtype)
    moments, frames = extractor.moments(waveforms), config.frame_count(waveforms.shape[1])
    samples = F.pad(waveforms, (extractor.padding, extractor.padding))
    for start in range(0, frames, size):
        end = min(start + size, frames)
        first, last = max(0, start - context), min(frames, end + context)
        chunk = samples[:, first * extractor.hop : (last - 1) * extractor.hop + extractor.field]
        projected = encoder.feature_projection(extractor.chunk(chunk, moments))
        output, kept = encoder.contextualize(projected, torch.tensor([last - first])), slice(start - first, end - first)
        yield EncoderOutput(
            projected=output.projected[:, kept],
            hidden_states=[states[:, kept] for states in output.hidden_states],
            last_hidden_state=output.last_hidden_state[:, kept],
            frame_lengths=torch.tensor([end - start]),
        )


def _streamed(encoder: SpeechEncoder, waveforms: Tensor, samples: int) -> Iterator[EncoderOutput]:
    """The same for a streaming encoder, `samples` at a time: exactly the output for the whole wav."""
    stream = Stream(encoder)
    for part in waveforms.split(samples, dim=1):
        yield stream(part)
    yield stream.flush()


def chunks(
    encoder: SpeechEncoder, waveform: Any, seconds: float = SECONDS, overlap: float = OVERLAP
) -> Iterator[list[Tensor]]:
    """As `outputs`, but yields F^0..F^L only, each (frame, channel)."""
    for output in outputs(encoder, waveform, seconds, overlap):
        yield [states[0] for states in output.hidden_states]


def extract(encoder: SpeechEncoder, waveform: Any, seconds: float = SECONDS, overlap: float = OVERLAP) -> list[Tensor]:
    """F^0..F^L of a wav, each (frame, channel), computed chunk by chunk."""
    return [torch.cat(layer) for layer in zip(*chunks(encoder, waveform, seconds, overlap), strict=True)]


def encode(encoder: SpeechEncoder, waveforms: Tensor, lengths: Tensor, seconds: float = SECONDS) -> EncoderOutput:
    """The encoder's output for a batch, (batch, sample) and (batch,) samples, each wav computed chunk by chunk."""
    rows = []
    for waveform, length in zip(waveforms, lengths.tolist(), strict=True):
        parts = list(outputs(encoder, waveform[:length], seconds))
        row = EncoderOutput(
            projected=torch.cat([part.projected for part in parts], dim=1),
            hidden_states=[
                torch.cat(layer, dim=1) for layer in zip(*(part.hidden_states for part in parts), strict=True)
            ],
            last_hidden_state=torch.cat([part.last_hidden_state for part in parts], dim=1),
            frame_lengths=torch.stack([part.frame_lengths for part in parts]).sum(dim=0),
        )
        rows.append(row)
    return together(rows)
