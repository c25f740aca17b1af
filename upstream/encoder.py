"""The network: teacher, narrow student, pruned student and deployed upstream are all `SpeechEncoder`s."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import Memory, PositionGate, RelativePosition, SelfAttention, chunk_mask
from .config import EncoderConfig
from .convolution import faster_by_row
from .dropout import Dropout
from .errors import UserError
from .extractor import FeatureExtractor, FeatureProjection
from .log_mel import LogMelExtractor
from .mel_extractor import MelExtractor
from .output import EncoderOutput
from .positional import PositionalConvolution, positional_part
from .streaming import Stream
from .waveforms import as_batch, centred, frame_mask, normalize_waveforms, up_to


class FeedForward(nn.Module):
    """Linear, GELU, linear, with dropout after each."""

    def __init__(self, inner: int, config: EncoderConfig) -> None:
        super().__init__()
        self.intermediate = nn.Linear(config.embed_dim, inner)
        self.activation_dropout = Dropout(config.activation_dropout)
        self.output = nn.Linear(inner, config.embed_dim)

    def forward(self, states: Tensor) -> Tensor:  # (batch, frame, channel)
        return self.output(self.activation_dropout(F.gelu(self.intermediate(states))))


class OutputBias(nn.Module):
    """A sublayer without units: they were pruned, and its constant output remains."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(config.embed_dim))

    def forward(self, states: Tensor) -> Tensor:  # (batch, frame, channel)
        return self.bias.expand_as(states)


class EncoderLayer(nn.Module):
    """Attention and feed-forward, each with its residual and norm; either may be missing or a constant."""

    def __init__(self, heads: tuple[int, ...] | None, ffn_dim: int | None, config: EncoderConfig) -> None:
        super().__init__()
        self.norm_first = config.layer_norm_first
        self.dropout = Dropout(config.hidden_dropout)
        self.attention: nn.Module | None = None
        if heads is not None:
            self.attention = SelfAttention(heads, config) if heads else OutputBias(config)
        self.feed_forward: nn.Module | None = None
        if ffn_dim is not None:
            self.feed_forward = FeedForward(ffn_dim, config) if ffn_dim else OutputBias(config)
        self.attention_norm = self._norm(bool(heads), config)
        self.feed_forward_norm = self._norm(bool(ffn_dim), config)

    def _norm(self, has_units: bool, config: EncoderConfig) -> nn.LayerNorm | None:
        """Post-LN norms act on the residual stream and are always needed; a pre-LN norm only feeds its sublayer."""
        return nn.LayerNorm(config.embed_dim, config.layer_norm_eps) if has_units or not self.norm_first else None

    def forward(
        self,
        states: Tensor,
        key_mask: Tensor | None,
        position_bias: Tensor | None,
        attention_map: bool,
        memory: Memory | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(batch, frame, channel) -> the same, and the attention map if asked for; `memory`: of a `Stream`."""
        weights = None
        if self.attention is not None:
            inputs = self._before(self.attention_norm, states)
            if isinstance(self.attention, SelfAttention):
                more = () if memory is None else (memory,)
                update, weights = self.attention(inputs, key_mask, position_bias, attention_map, *more)
            else:
                update = self.attention(inputs)
            states = states + self.dropout(update)
        states = self._after(self.attention_norm, states)
        if self.feed_forward is not None:
            update = self.feed_forward(self._before(self.feed_forward_norm, states))
            states = states + self.dropout(update)
        return self._after(self.feed_forward_norm, states), weights

    def _before(self, norm: nn.Module | None, states: Tensor) -> Tensor:
        return norm(states) if self.norm_first and norm is not None else states

    def _after(self, norm: nn.Module | None, states: Tensor) -> Tensor:
        return norm(states) if not self.norm_first and norm is not None else states


class SpeechEncoder(nn.Module):
    """An encoder of any of the `FAMILIES`, of any width and with any units pruned.

    A wav's states do not depend on the rest of its batch: padding does not enter convolutions of valid frames,
    statistics or attention.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self._stream: Stream | None = None
        self.masks_chunks = bool(config.chunk_frames)  # not in graphs, whose attention does it itself
        extractor = MelExtractor if config.mel_bins else FeatureExtractor
        self.feature_extractor = LogMelExtractor(config) if config.whisper else extractor(config)
        self.feature_projection = FeatureProjection(config)
        self.feature_dropout = Dropout(config.feature_dropout)
        self.positional = positional_part(config)
        self.layer_norm = nn.LayerNorm(config.embed_dim, config.layer_norm_eps)  # before the layers (post-LN) or after
        self.hidden_dropout = Dropout(config.hidden_dropout)
        self.relative_position = RelativePosition(config) if config.relative_position else None
        self.layers = nn.ModuleList(
            EncoderLayer(heads, ffn_dim, config)
            for heads, ffn_dim in zip(config.attention_heads, config.ffn_dims, strict=True)
        )
        if self.layer_norm.weight.device.type != "meta":  # meta has no values, and torch would import its compiler
            self.apply(_initialize)

    def forward(self, waveforms: Any, lengths: Any = None, attention_maps: bool = False) -> EncoderOutput:
        """
        Args:
            waveforms: (batch, sample), 16 kHz, or anything else that `as_batch` takes; the padding is ignored.
            lengths: (batch,) valid samples of each, best on the CPU, where they are checked; default: all samples.
            attention_maps: whether A^1..A^L are computed too, without the fused attention kernel.

        Raises:
            UserError: as `as_batch`; a wav too short for one frame, or longer than 30 s for Whisper.
        """
        if self._stream is not None:
            if lengths is not None or attention_maps:
                raise UserError("a stream accepts neither lengths nor attention_maps")
            return self._stream(waveforms)
        projected, frame_lengths = self.extract(waveforms, lengths)
        return self.contextualize(projected, frame_lengths, attention_maps)

    @contextmanager
    def streaming(self, batch: int = 1) -> Iterator[Stream]:
        """Context in which each call takes the next audio of a stream and returns the frames that it completes.

        Their states equal those for the whole wav, up to rounding. The stream's `flush` returns the last ones.

        Args:
            batch: number of parallel wavs; each call takes audio of the same length for all of them.

        Raises:
            UserError: an encoder whose frames need the whole wav (student.attention=full), or already streaming.
        """
        if self._stream is not None:
            raise UserError(
                "the encoder is already streaming; open parallel streams with upstream.streaming.Stream(encoder)"
            )
        self._stream = Stream(self, batch)
        try:
            yield self._stream
        finally:
            self._stream = None

    def extract(self, waveforms: Any, lengths: Any = None) -> tuple[Tensor, Tensor]:
        """As `forward`: waveforms and lengths -> P (batch, frame, channel) and, on the CPU, (batch,) frames."""
        features, frame_lengths = self.convolve(waveforms, lengths)
        return self.feature_projection(features), frame_lengths

    def convolve(self, waveforms: Any, lengths: Any = None) -> tuple[Tensor, Tensor]:
        """As `extract`: the convolutions' features (batch, frame, channel), before norm and projection, and frames."""
        weight = self.layer_norm.weight
        waveforms, lengths = as_batch(waveforms, lengths, weight, self.config.min_samples)
        if self.config.max_samples:
            waveforms = up_to(waveforms, lengths, self.config.max_samples)
        # a traced graph must serve padded batches too
        padded = torch.compiler.is_compiling() or int(lengths.min()) < waveforms.shape[1]
        on_device = lengths.to(waveforms.device, non_blocking=True)
        waveforms = self.prepare(waveforms, on_device).to(weight.dtype)
        features = self.feature_extractor(waveforms, on_device if padded else None)
        return features, self.config.frame_count(lengths)

    def prepare(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """(batch, sample), zero-padded, as the extractor takes it: normalised or centred, where that is exact.

        A group norm over time removes the mean of its channels, and so the constant that a wav's mean adds to them.
        Removing it beforehand changes nothing and keeps the precision that a large offset would cost.
        """
        if self.config.normalize_waveform:
            return normalize_waveforms(waveforms, lengths, self.config.normalize_eps)
        return centred(waveforms, lengths) if self.config.ignores_mean else waveforms

    def contextualize(self, projected: Tensor, frame_lengths: Tensor, attention_maps: bool = False) -> EncoderOutput:
        """P (batch, frame, channel) and, best on the CPU, (batch,) frames -> the encoder's output."""
        if self.config.attends_to_padding:
            every = torch.full_like(frame_lengths, projected.shape[1])
            return replace(self._attend(projected, every, attention_maps), frame_lengths=frame_lengths).cut()
        return self._attend(projected, frame_lengths, attention_maps)

    def _attend(self, projected: Tensor, frame_lengths: Tensor, attention_maps: bool) -> EncoderOutput:
        """The layers, with attention limited to `frame_lengths`."""
        frames = projected.shape[1]
        # the kernel is fastest without a mask; a traced graph must serve padded batches too
        padded = torch.compiler.is_compiling() or bool((frame_lengths < frames).any())
        if padded and faster_by_row(projected) and not self.training:
            return self._row_by_row(projected, frame_lengths, attention_maps)
        mask = frame_mask(frame_lengths, frames, projected.device)  # (batch, frame)
        states = self.feature_dropout(projected).masked_fill(~mask[..., None], 0.0)
        states = states + self.positional(states, mask[..., None])
        if not self.config.layer_norm_first:
            states = self.layer_norm(states)
        key_mask = mask[:, None, None] if padded else None
        if self.masks_chunks:
            seen = chunk_mask(frames, self.config.chunk_frames, self.config.left_frames, mask.device)[None, None]
            # a padded query may see padded keys: without any key, its states would be NaN
            key_mask = seen if key_mask is None else seen & (key_mask | ~mask[:, None, :, None])
        position_bias = None if self.relative_position is None else self.relative_position(frames)
        hidden_states, maps = [states], []
        states = self.hidden_dropout(states)
        for layer in self.layers:
            states, attention_map = layer(states, key_mask, position_bias, attention_maps)
            hidden_states.append(states)
            maps.append(attention_map)
        return EncoderOutput(
            projected=projected,
            hidden_states=hidden_states,
            last_hidden_state=self.layer_norm(states) if self.config.layer_norm_first else states,
            frame_lengths=frame_lengths,
            attention_maps=maps if attention_maps else None,
        )

    def _row_by_row(self, projected: Tensor, frame_lengths: Tensor, attention_maps: bool) -> EncoderOutput:
        """`_attend` for each row without its padding."""
        rows = [
            self._attend(projected[row, None, :length], frame_lengths[row, None], attention_maps)
            for row, length in enumerate(frame_lengths.tolist())
        ]
        return replace(together(rows, projected.shape[1]), projected=projected)


def together(rows: Sequence[EncoderOutput], frames: int = 0) -> EncoderOutput:
    """Outputs for batches of one as one batch of at least `frames` frames; padded frames are zeros."""
    frames = max(frames, *(row.projected.shape[1] for row in rows))
    layers = zip(*(row.hidden_states for row in rows), strict=True)
    maps = zip(*(row.attention_maps or () for row in rows), strict=True)
    return EncoderOutput(
        projected=_padded([row.projected for row in rows], frames),
        hidden_states=[_padded(layer, frames) for layer in layers],
        last_hidden_state=_padded([row.last_hidden_state for row in rows], frames),
        frame_lengths=torch.cat([row.frame_lengths for row in rows]),
        attention_maps=[_padded(layer, frames, square=True) for layer in maps] if rows[0].attention_maps else None,
    )


def _padded(rows: Sequence[Any], frames: int, square: bool = False) -> Any:
    """Rows of states (1, frame, channel), or of `square` maps (1, head, frame, frame), padded to one batch."""
    if rows[0] is None:  # no map
        return None
    gaps = [frames - row.shape[-2] for row in rows]
    return torch.cat([F.pad(row, (0, square * gap, 0, gap)) for row, gap in zip(rows, gaps, strict=True)])


def _initialize(module: nn.Module) -> None:
    """Initial weights as in HuBERT: normal(0.02) for linear layers, Kaiming for convolutions."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv1d):
        nn.init.kaiming_normal_(module.weight)
        if module.bias is not None:
            bound = math.sqrt(1.0 / (module.in_channels * module.kernel_size[0]))
            nn.init.uniform_(module.bias, -bound, bound)
    elif isinstance(module, RelativePosition):
        nn.init.normal_(module.weight, std=0.02)
    elif isinstance(module, PositionalConvolution):
        module.initialize()
    elif isinstance(module, PositionGate):
        nn.init.ones_(module.constant)
