"""Self-attention over a layer's remaining heads, plain or with WavLM's gated relative positions."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import EncoderConfig
from .dropout import Dropout

BIAS_PAIRS = 1 << 20  # (query, key) pairs whose biases are in memory at a time in inference: 1,024 frames' (20 s)
# fused GPU kernels need head widths that are multiples of this; for others, attention maps are stored
HEAD_MULTIPLE = {"cuda": 8}


class Memory:
    """Keys and values of the last `size` frames that a layer has attended to."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.kept: tuple[Tensor, Tensor] | None = None

    @property
    def frames(self) -> int:
        return 0 if self.kept is None else self.kept[0].shape[2]

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The stored keys and values followed by these, (batch, head, frame, head_dim); keeps the last `size`."""
        if self.kept is not None:
            key, value = (torch.cat(pair, dim=2) for pair in zip(self.kept, (key, value), strict=True))
        first = max(0, key.shape[2] - self.size)
        self.kept = key[:, :, first:], value[:, :, first:]
        return key, value


def chunk_mask(frames: int, chunk: int, left: int, device: torch.device | None = None) -> Tensor:
    """True where a query sees a key: in its chunk, and in the `left` frames before it; (query, key)."""
    positions = torch.arange(frames, device=device)
    starts = (positions // chunk * chunk)[:, None]
    return (positions >= starts - left) & (positions < starts + chunk)


class RelativePosition(nn.Embedding):
    """WavLM's table of relative-position biases, shared by all layers, whichever attention is pruned."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config.relative_buckets, config.num_heads)
        self.max_distance = config.relative_max_distance

    def reset_parameters(self) -> None:
        """Nothing: the encoder initialises all its parts."""

    def forward(self, frames: int) -> Tensor:  # type: ignore[override]  # positions follow from the frame count
        """Bias of each head for every (query, key) pair: (head, query, key).

        For a long wav in inference: for every distance instead, (head, distance), which `biases_of` expands.
        """
        if not (torch.is_grad_enabled() or torch.compiler.is_compiling()) and frames**2 > BIAS_PAIRS:
            distances = torch.arange(1 - frames, frames, device=self.weight.device)  # key minus query
            return super().forward(self._bucket(distances)).T
        return self.last(frames, frames)

    def last(self, queries: int, frames: int) -> Tensor:
        """Bias of each head for the last `queries` of `frames` frames: (head, query, key)."""
        positions = torch.arange(frames, device=self.weight.device)
        distances = positions[None, :] - positions[frames - queries :, None]
        return super().forward(self._bucket(distances)).permute(2, 0, 1)

    def _bucket(self, distances: Tensor) -> Tensor:
        """Half of the buckets for each sign; of these, half for one distance each, half logarithmic to the maximum."""
        signed = self.num_embeddings // 2
        exact = signed // 2
        ahead = (distances > 0).long() * signed
        size = distances.abs()
        log_share = torch.log(size.clamp(min=1).float() / exact) / math.log(self.max_distance / exact)
        logarithmic = (exact + log_share * (signed - exact)).long().clamp(max=signed - 1)
        return ahead + torch.where(size < exact, size, logarithmic)


def biases_of(position_bias: Tensor, queries: slice) -> Tensor:
    """The part of `RelativePosition`'s biases that belongs to some queries: (head, query, key)."""
    if position_bias.ndim == 3:
        return position_bias[:, queries]
    frames = (position_bias.shape[1] + 1) // 2
    needed = position_bias[:, frames - queries.stop : 2 * frames - 1 - queries.start]
    return needed.unfold(1, frames, 1).flip(1)  # windows of the distances: the first belongs to the last query


class PositionGate(nn.Module):
    """WavLM's gate: each query scales the relative-position bias of each head."""

    def __init__(self, heads: tuple[int, ...], config: EncoderConfig) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.linear = nn.Linear(config.head_dim, 8)
        self.constant = nn.Parameter(torch.ones(len(heads)))
        # a list, not a non-persistent buffer: those are lost when a model is built on the meta device
        self.heads = list(heads)

    def forward(self, states: Tensor, position_bias: Tensor) -> Tensor:
        """states (batch, query, channel), position_bias (every head, query, key) -> (batch, head, query, key)."""
        by_head = states.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)  # (batch, head, query, .)
        if len(self.heads) < self.num_heads:  # indexing with a list would wait for the GPU
            by_head = torch.stack([by_head[:, head] for head in self.heads], dim=1)
            position_bias = torch.stack([position_bias[head] for head in self.heads])
        gates = self.linear(by_head).unflatten(-1, (2, 4)).sum(-1).sigmoid()
        update, reset = gates.chunk(2, dim=-1)  # (batch, head, query, 1) each
        return (update * (reset * self.constant[:, None, None] - 1.0) + 2.0) * position_bias


class SelfAttention(nn.Module):
    """Multi-head attention over a layer's heads, by a fused kernel unless the maps are asked for."""

    def __init__(self, heads: tuple[int, ...], config: EncoderConfig) -> None:
        super().__init__()
        inner = len(heads) * config.head_dim
        self.head_dim, self.scale = config.head_dim, config.head_dim**-0.5
        self.dropout = Dropout(config.attention_dropout)  # of attention weights
        self.q_proj = nn.Linear(config.embed_dim, inner)
        self.k_proj = nn.Linear(config.embed_dim, inner, bias=not config.whisper)
        self.v_proj = nn.Linear(config.embed_dim, inner)
        self.out_proj = nn.Linear(inner, config.embed_dim)
        self.gate = PositionGate(heads, config) if config.relative_position else None

    def forward(
        self,
        states: Tensor,
        key_mask: Tensor | None,
        position_bias: Tensor | None,
        attention_map: bool,
        memory: Memory | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """
        Args:
            states: (batch, frame, channel).
            key_mask: True at visible keys, (batch, 1, 1 or query, key); None if all are.
            position_bias: WavLM's, as from `RelativePosition`.
            attention_map: whether softmax(Q K^T / sqrt(d_h) + bias), before dropout, is returned as well.
            memory: earlier keys and values, which precede those of `states`.

        Returns:
            (batch, frame, channel) and (batch, head, query, key) or None.
        """
        spare = -self.head_dim % HEAD_MULTIPLE.get(states.device.type, 1)
        query, key, value = (
            self._by_head(projection, states, spare) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if memory is not None:
            key, value = memory.extend(key, value)
        dropout = self.dropout.p if self.training else 0.0
        if attention_map or (dropout and states.device.type == "cpu"):  # the CPU's fused kernel has no dropout
            everything = slice(0, states.shape[1])
            bias = self._bias(states, key_mask, position_bias, everything, query.dtype)
            weights = _attention_map(query, key, bias, self.scale)
            context = self.dropout(weights).to(value.dtype) @ value
            return self._output(context, spare), weights if attention_map else None
        parts = []
        for rows in _blocks(states.shape[1], position_bias):
            bias = self._bias(states, key_mask, position_bias, rows, query.dtype)
            attended = F.scaled_dot_product_attention(query[:, :, rows], key, value, bias, dropout, scale=self.scale)
            parts.append(attended)
        return self._output(parts[0] if len(parts) == 1 else torch.cat(parts, dim=2), spare), None

    def _by_head(self, projection: nn.Linear, states: Tensor, spare: int) -> Tensor:
        """(batch, head, frame, head_dim + spare), the spare channels zero because their weights are."""
        if not spare:
            projected = projection(states)
        else:
            weight = F.pad(projection.weight.unflatten(0, (-1, self.head_dim)), (0, 0, 0, spare)).flatten(0, 1)
            bias = projection.bias
            if bias is not None:
                bias = F.pad(bias.unflatten(0, (-1, self.head_dim)), (0, spare)).flatten()
            projected = F.linear(states, weight, bias)
        return projected.unflatten(-1, (-1, self.head_dim + spare)).transpose(1, 2)

    def _output(self, context: Tensor, spare: int) -> Tensor:
        """(batch, head, frame, head_dim + spare) -> (batch, frame, channel)."""
        context = context.transpose(1, 2).flatten(2)
        if not spare:
            return self.out_proj(context)
        weight = F.pad(self.out_proj.weight.unflatten(1, (-1, self.head_dim)), (0, spare)).flatten(1)
        return F.linear(context, weight, self.out_proj.bias)

    def _bias(
        self, states: Tensor, key_mask: Tensor | None, position_bias: Tensor | None, queries: slice, dtype: torch.dtype
    ) -> Tensor | None:
        """The term to add to the scores of some queries, or just the key mask; None if there is neither."""
        if key_mask is not None and key_mask.shape[2] > 1:
            key_mask = key_mask[:, :, queries]
        if self.gate is None or position_bias is None:
            return key_mask
        bias = self.gate(states[:, queries], biases_of(position_bias, queries)).to(dtype)
        return bias if key_mask is None else bias.masked_fill(~key_mask, -math.inf)


def _blocks(frames: int, position_bias: Tensor | None) -> list[slice]:
    """All queries at once, or small blocks of them if the biases of all pairs have not been computed."""
    if position_bias is None or position_bias.ndim == 3:
        return [slice(0, frames)]
    size = max(1, BIAS_PAIRS // frames)
    return [slice(start, min(start + size, frames)) for start in range(0, frames, size)]


def _attention_map(query: Tensor, key: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    scores = query * scale @ key.transpose(2, 3)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if bias is not None:
        scores = scores.masked_fill(~bias, -math.inf) if bias.dtype == torch.bool else scores + bias
    return scores.softmax(dim=-1)
