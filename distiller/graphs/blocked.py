"""Attention in a graph: a block of queries at a time, so that memory is linear in the wav's length, not quadratic."""

import copy
import math

import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan  # `Scan` in ONNX
from torch.nn import functional as F

from upstream.attention import Memory, RelativePosition, SelfAttention
from upstream.config import EncoderConfig
from upstream.encoder import EncoderLayer, SpeechEncoder

BLOCK = 64  # queries
NEVER = -1e30  # the score of a padded key: finite, so that zero times it is zero, but its weight vanishes


class DistanceBiases(nn.Module):
    """WavLM's relative-position biases by distance: (head, 2 D + 1) for -D..D; beyond D they stay the same."""

    biases: Tensor

    def __init__(self, positions: RelativePosition) -> None:
        super().__init__()
        distances = torch.arange(-positions.max_distance, positions.max_distance + 1)
        self.register_buffer("biases", positions.weight.detach()[positions._bucket(distances)].T.contiguous())

    def forward(self, frames: int) -> Tensor:
        return self.biases


class BlockedAttention(SelfAttention):
    """`SelfAttention` of matrix products over blocks of queries, with the biases of `DistanceBiases`."""

    def __init__(self, attention: SelfAttention, config: EncoderConfig) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(attention.__dict__)  # its projections and its gate
        self.chunk, self.left = config.chunk_frames, config.left_frames

    def forward(
        self,
        states: Tensor,
        key_mask: Tensor | None,
        position_bias: Tensor | None,
        attention_map: bool,
        memory: Memory | None = None,
    ) -> tuple[Tensor, None]:
        """As in `SelfAttention`, for a key_mask (batch, 1, 1, key), without maps and memory."""
        query, key, value = (
            projection(states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (batch, head, frame, .)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        assert key_mask is not None  # traced graphs serve padded batches
        # an extra channel for the mask, which the product then adds for free; a separate step took a fifth of the time
        query = torch.cat([query / math.sqrt(self.head_dim), torch.ones_like(query[..., :1])], dim=-1)
        key = torch.cat([key, torch.zeros_like(key[..., :1]).masked_fill(~key_mask.mT, NEVER)], dim=-1)
        positions = torch.arange(states.shape[1], device=states.device)
        blocks = [_blocks(query, 2), _blocks(positions, 0)]
        biases = None
        if self.gate is not None and position_bias is not None:
            biases = position_bias[self.gate.heads]
            blocks.append(_blocks(self.gate(states, biases.new_ones(self.gate.num_heads, 1, 1)), 2))

        def attend(carry: Tensor, block: list[Tensor]) -> tuple[Tensor, Tensor]:
            scores = block[0] @ key.transpose(2, 3)  # (batch, head, query, key), `NEVER` for padded keys
            if biases is not None:
                reach = biases.shape[1] // 2
                distances = (positions - block[1][:, None]).clamp(-reach, reach) + reach
                scores = scores + block[2] * biases[:, distances]
            if self.chunk:
                starts = (block[1] // self.chunk * self.chunk)[:, None]
                seen = (positions >= starts - self.left) & (positions < starts + self.chunk)
                scores = scores.masked_fill(~seen, NEVER)
            return carry.clone(), scores.softmax(dim=-1) @ value

        _, context = scan(attend, states.new_zeros(1), blocks)  # without a carry, but one is required
        context = context.movedim(0, 2).flatten(2, 3)[:, :, : states.shape[1]]
        return self.out_proj(context.transpose(1, 2).flatten(2)), None


def _blocks(values: Tensor, dim: int) -> Tensor:
    """Dimension `dim`, the queries, padded and split into blocks, which come first; tracing requires at least two."""
    count = (values.shape[dim] + BLOCK - 1) // BLOCK + 1
    padding = [0, 0] * (values.ndim - 1 - dim) + [0, count * BLOCK - values.shape[dim]]
    return F.pad(values, padding).unflatten(dim, (count, BLOCK)).movedim(dim, 0)


def in_blocks(encoder: SpeechEncoder) -> SpeechEncoder:
    """A copy of the encoder with such attention, to be traced."""
    encoder, config = copy.deepcopy(encoder), encoder.config
    encoder.masks_chunks = False
    if encoder.relative_position is not None:
        encoder.relative_position = DistanceBiases(encoder.relative_position)  # type: ignore[assignment]
    for layer in encoder.layers:
        assert isinstance(layer, EncoderLayer)
        if isinstance(layer.attention, SelfAttention):
            layer.attention = BlockedAttention(layer.attention, config)
    return encoder
