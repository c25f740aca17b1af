"""Streaming inference: the past context that an encoder's frames need is carried from call to call.

Memory does not grow with the wav. A frame is returned once its chunk is complete (`chunk_frames`): the latency is the
chunk plus the 25 ms under its last frame (35 with log-mel energies).
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .attention import Memory
from .errors import UserError
from .extractor import FeatureExtractor
from .output import EncoderOutput
from .positional import PositionalConvolution
from .waveforms import as_batch


def next_samples(waveforms: Any, batch: int, ended: bool, like: Tensor) -> Tensor:
    """The next samples of a stream, as by `as_batch`: (batch, sample). Raises: UserError: as `Stream`."""
    if ended:
        raise UserError("the stream has ended; open a new one or restart it for the next wav")
    several = isinstance(waveforms, (Tensor, np.ndarray)) and waveforms.ndim == 2 and len(waveforms) == batch
    waveforms, lengths = as_batch(list(waveforms) if several else waveforms, None, like, 1)
    if len(waveforms) != batch or int(lengths.min()) < waveforms.shape[1]:
        raise UserError(f"the audio must be {batch} wavs of equal length in every call of this stream")
    return waveforms


class Stream:
    """The state of an encoder between two calls (`SpeechEncoder.streaming`)."""

    def __init__(self, encoder: Any, batch: int = 1) -> None:  # a SpeechEncoder, whose module imports this one
        config = encoder.config
        if not config.chunk_frames:
            raise UserError(
                "this encoder needs the whole wav; to stream, train a student with student.attention=chunked"
            )
        extractor, positional = encoder.feature_extractor, encoder.positional
        assert isinstance(extractor, FeatureExtractor)
        assert isinstance(positional, PositionalConvolution)
        self.encoder, self.extractor, self.positional, self.batch = encoder, extractor, positional, batch
        weight = encoder.layer_norm.weight
        self.samples = weight.new_zeros(batch, extractor.padding)  # that later frames need
        self.moments = extractor.moments(self.samples)  # of the audio so far; the extractor updates them
        self.pending = weight.new_zeros(batch, 0, config.embed_dim)  # P of the incomplete chunk
        self.past = weight.new_zeros(batch, config.positional_reach, config.embed_dim)  # input of the convolution
        self.memories = [Memory(config.left_frames) for _ in encoder.layers]
        self.ended = False

    @torch.no_grad()
    def __call__(self, waveforms: Any) -> EncoderOutput:
        """The next samples, (batch, sample) or as `as_batch` takes them -> the frames of the chunks they complete.

        Raises:
            UserError: as `as_batch`; another number of wavs, or wavs of different lengths; audio after `flush`.
        """
        weight = self.encoder.layer_norm.weight
        self._hear(next_samples(waveforms, self.batch, self.ended, weight).to(weight.dtype))
        chunk = self.encoder.config.chunk_frames
        return self._attend(self.pending.shape[1] // chunk * chunk)

    @torch.no_grad()
    def flush(self) -> EncoderOutput:
        """The frames of the last, incomplete chunk. The stream then accepts no more audio."""
        self.ended = True
        self._hear(self.samples.new_zeros(self.batch, self.extractor.padding))
        return self._attend(self.pending.shape[1])

    def _hear(self, waveforms: Tensor) -> None:
        samples = torch.cat([self.samples, waveforms], dim=1)
        frames = max(0, (samples.shape[1] - self.extractor.field) // self.extractor.hop + 1)
        if frames:
            used = samples[:, : (frames - 1) * self.extractor.hop + self.extractor.field]
            projected = self.encoder.feature_projection(self.extractor.chunk(used, self.moments))
            self.pending = torch.cat([self.pending, projected], dim=1)
        self.samples = samples[:, frames * self.extractor.hop :].clone()

    def _attend(self, frames: int) -> EncoderOutput:
        """The next `frames` frames, chunk by chunk."""
        config = self.encoder.config
        ready, self.pending = self.pending[:, :frames], self.pending[:, frames:]
        parts = [self._chunk(part) for part in ready.split(config.chunk_frames, dim=1)] if frames else []
        layers = zip(*parts, strict=True) if parts else ([ready] for _ in range(config.num_layers + 1))
        hidden_states = [torch.cat(list(layer), dim=1) for layer in layers]
        last = hidden_states[-1]
        return EncoderOutput(
            projected=ready,
            hidden_states=hidden_states,
            last_hidden_state=self.encoder.layer_norm(last) if config.layer_norm_first else last,
            frame_lengths=torch.full((self.batch,), frames),
        )

    def _chunk(self, projected: Tensor) -> list[Tensor]:
        """F^0..F^L of one chunk (batch, frame, channel)."""
        encoder = self.encoder
        states = projected + self.positional(projected, past=self.past)
        self.past = torch.cat([self.past, projected], dim=1)[:, projected.shape[1] :]
        if not encoder.config.layer_norm_first:
            states = encoder.layer_norm(states)
        position_bias, hidden_states = None, [states]
        if encoder.relative_position is not None:
            known = max(memory.frames for memory in self.memories)
            position_bias = encoder.relative_position.last(states.shape[1], known + states.shape[1])
        for layer, memory in zip(encoder.layers, self.memories, strict=True):
            states, _ = layer(states, None, position_bias, False, memory)
            hidden_states.append(states)
        return hidden_states
