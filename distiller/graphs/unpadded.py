"""An encoder for one wav without padding, built from operators that XNNPACK supports: nothing is masked."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distiller.graphs.blocked import NEVER, DistanceBiases
from distiller.graphs.onnx import StatesGraph
from upstream.attention import Memory, SelfAttention, chunk_mask
from upstream.encoder import EncoderLayer, EncoderOutput, SpeechEncoder
from upstream.extractor import ChannelGroupNorm, ConvLayer
from upstream.positional import PositionalConvolution, PositionalStack


class UnpaddedGraph(nn.Module):
    """The computation of the file: waveforms (1, sample) -> (states, frame_lengths) as in `StatesGraph`."""

    def __init__(self, states_graph: StatesGraph) -> None:
        super().__init__()
        encoder = _unpadded(states_graph.encoder)
        self.states_graph = StatesGraph(encoder, states_graph.states, states_graph.weights, states_graph.head)

    def forward(self, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        encoder: SpeechEncoder = self.states_graph.encoder
        first_norm = encoder.config.layer_norm_first
        projected = encoder.feature_projection(encoder.feature_extractor(_prepared(waveforms, encoder), None))
        frames = projected.shape[1]
        states = projected + encoder.positional(projected)
        if not first_norm:
            states = encoder.layer_norm(states)
        position_bias = None if encoder.relative_position is None else encoder.relative_position(frames)
        key_mask, config = None, encoder.config
        if config.chunk_frames:
            key_mask = chunk_mask(frames, config.chunk_frames, config.left_frames)
        hidden_states = [states]
        for layer in encoder.layers:
            states, _ = layer(states, key_mask, position_bias, False)
            hidden_states.append(states)
        last = encoder.layer_norm(states) if first_norm else states
        output = EncoderOutput(projected, hidden_states, last, torch.full((1,), frames))
        return self.states_graph.select(output), output.frame_lengths


class PairBiases(DistanceBiases):
    """WavLM's relative-position biases of every pair: (head, query, key)."""

    def forward(self, frames: int) -> Tensor:
        reach = self.biases.shape[1] // 2
        positions = torch.arange(frames)
        distances = (positions[None] - positions[:, None]).clamp(-reach, reach) + reach
        return F.embedding(distances, self.biases.T).permute(2, 0, 1)


class PlainAttention(SelfAttention):
    """`SelfAttention` of a single wav as products of (head, frame, head_dim), without shapes of a dynamic batch."""

    def __init__(self, attention: SelfAttention) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(attention.__dict__)  # its projections and its gate

    def forward(
        self,
        states: Tensor,
        key_mask: Tensor | None,
        position_bias: Tensor | None,
        attention_map: bool,
        memory: Memory | None = None,
    ) -> tuple[Tensor, None]:
        """As in `SelfAttention`, for states (1, frame, channel) and a mask (query, key), without maps or memory."""
        heads = self.q_proj.out_features // self.head_dim
        query, key, value = (
            projection(states).reshape(-1, heads, self.head_dim).transpose(0, 1)  # (head, frame, .)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = torch.bmm(query * self.scale, key.transpose(1, 2))  # (head, query, key)
        if self.gate is not None and position_bias is not None:
            scores = scores + self.gate(states, position_bias)[0]
        if key_mask is not None:
            scores = torch.where(key_mask, scores, NEVER)
        context = torch.bmm(scores.softmax(dim=-1), value).transpose(0, 1)
        return self.out_proj(context.reshape(1, -1, heads * self.head_dim)), None


class PooledGroupNorm(ChannelGroupNorm):
    """`ChannelGroupNorm` whose statistics are global average pools."""

    def __init__(self, norm: ChannelGroupNorm) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(norm.__dict__)

    def forward(self, input: Tensor, lengths: Tensor | None = None) -> Tensor:  # (1, channel, frame)
        centred = input[..., None] - _mean(input[..., None])
        scale = torch.rsqrt(_mean(centred * centred) + self.eps) * self.weight[:, None, None]
        return (centred * scale + self.bias[:, None, None]).squeeze(-1)


class PlainPositions(nn.Module):
    """Positional convolutions with the same weights, as `nn.Conv1d`s that keep the number of frames."""

    def __init__(self, positional: PositionalConvolution | PositionalStack) -> None:
        super().__init__()
        self.stacked = isinstance(positional, PositionalStack)
        if isinstance(positional, PositionalStack):
            self.layers = copy.deepcopy(positional.layers)
        else:
            width, norm = len(positional.bias), positional.weight_v.norm(dim=(0, 1), keepdim=True)
            convolution = nn.Conv1d(width, width, positional.kernel, groups=positional.groups)
            convolution.weight = nn.Parameter((positional.weight_v * (positional.weight_g / norm)).detach())
            convolution.bias = nn.Parameter(positional.bias.detach())
            self.layers = nn.ModuleList([convolution])
        self.before = None if isinstance(positional, PositionalStack) else positional.before
        for layer in self.layers:
            assert isinstance(layer, nn.Conv1d)
            layer.padding = (0,)

    def forward(self, states: Tensor) -> Tensor:  # (1, frame, channel)
        for layer in self.layers:
            assert isinstance(layer, nn.Conv1d)
            kernel = layer.kernel_size[0]
            before = kernel // 2 if self.before is None else self.before
            padded = F.pad(states.transpose(1, 2), (before, kernel - 1 - before))
            states = layer(padded).transpose(1, 2)
            states = F.gelu(F.layer_norm(states, states.shape[2:]) if self.stacked else states)
        return states


def _unpadded(encoder: SpeechEncoder) -> SpeechEncoder:
    """A copy of the encoder with these parts, to be traced."""
    encoder = copy.deepcopy(encoder)
    encoder.positional = PlainPositions(encoder.positional)  # type: ignore[arg-type]  # students are not Whisper
    if encoder.relative_position is not None:
        encoder.relative_position = PairBiases(encoder.relative_position)  # type: ignore[assignment]
    for layer in (*encoder.layers, *encoder.feature_extractor.conv_layers):  # type: ignore[misc]
        if isinstance(layer, EncoderLayer) and isinstance(layer.attention, SelfAttention):
            layer.attention = PlainAttention(layer.attention)
        if isinstance(layer, ConvLayer) and isinstance(layer.layer_norm, ChannelGroupNorm):
            layer.layer_norm = PooledGroupNorm(layer.layer_norm)
    return encoder


def _prepared(waveforms: Tensor, encoder: SpeechEncoder) -> Tensor:
    """`SpeechEncoder.prepare` of a wav without padding."""
    config = encoder.config
    if not (config.normalize_waveform or config.ignores_mean):
        return waveforms
    samples = waveforms.reshape(1, 1, -1, 1)
    for _ in range(2):  # the second pass removes what rounding left of a large offset
        samples = samples - _mean(samples)
    if config.normalize_waveform:
        samples = samples / torch.sqrt(_mean(samples * samples) + config.normalize_eps)
    return samples.reshape(1, -1)


def _mean(values: Tensor) -> Tensor:
    """The mean over the last two dimensions of four, the only one that XNNPACK supports."""
    return values.mean(dim=(-1, -2), keepdim=True)
