"""Statistics over time of a wav that is heard as it comes: those of what has been heard, not of the whole wav.

A block is what one frame adds, 20 ms. Each block is normalised by the statistics of the blocks before it, the first by
its own, so that no frame depends on what follows it. Means are over all blocks up to `MEMORY`; from then on a block's
weight decays with its age, so that the norm follows a voice that comes nearer, however long the stream.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MEMORY = 500  # blocks: 10 s
AT_ONCE = 512  # blocks whose weights, a square matrix, are in memory at a time


class RunningMoments:
    """Mean and mean square of what has been heard, and how many blocks that were.

    Args:
        known: (batch, 2, channel), fp32: mean and mean square, zeros before the first block.
        blocks: (1,), at most `MEMORY`. A tensor, since a graph carries it from call to call.
    """

    def __init__(self, known: Tensor, blocks: Tensor) -> None:
        self.known, self.blocks = known, blocks

    @classmethod
    def before(cls, waveforms: Tensor, channels: int) -> "RunningMoments":
        """Those before the first sample of a batch of wavs."""
        known = waveforms.new_zeros(waveforms.shape[0], 2, channels, dtype=torch.float32)
        return cls(known, torch.zeros(1, dtype=torch.int64, device=waveforms.device))

    def follow(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The next blocks -> mean and variance by which each is normalised, and remember all but the last of them.

        Args:
            values: (batch, channel, block, position). The last block, which may be incomplete, is heard again.

        Returns:
            (batch, channel, block, 1) each.
        """
        heard = values[:, :, :-1].to(torch.promote_types(values.dtype, torch.float32))
        found = torch.stack([heard.mean(dim=3), heard.square().mean(dim=3)], dim=1)  # (batch, 2, channel, block)
        begins, before = self.blocks == 0, self.known[..., None]
        parts = [found] if torch.compiler.is_compiling() else found.split(AT_ONCE, dim=3)
        running = torch.cat([self._remember(part) for part in parts], dim=3)
        before = torch.where(begins, running[..., :1], before)
        mean, square = torch.cat([before, running], dim=3)[..., None].unbind(dim=1)
        return mean, (square - mean.square()).clamp(min=0.0)

    def _remember(self, found: Tensor) -> Tensor:
        """(batch, 2, channel, block) -> the same, over what has been heard at the end of each block."""
        weights = block_weights(self.blocks, found.shape[3]).to(found.dtype)
        with torch.autocast(found.device.type, enabled=False):
            running = found @ weights.mT + self.known[..., None] * (1 - weights.sum(dim=1))
        self.known, self.blocks = running[..., -1], (self.blocks + found.shape[3]).clamp(max=MEMORY)
        return running


def block_weights(before: Tensor, blocks: int) -> Tensor:
    """What each of the blocks behind `before` (1,) earlier ones counts in the mean at the end of each: (at, of)."""
    positions = before + torch.arange(blocks, device=before.device)
    ends = positions[:, None]
    ages = (ends - positions.clamp(min=MEMORY - 1)).clamp(min=0)
    weights = (1 - 1 / MEMORY) ** ages / (ends + 1).clamp(max=MEMORY)
    return weights.masked_fill(positions > ends, 0.0)


def in_blocks(values: Tensor, size: int) -> Tensor:
    """(..., position) -> (..., block, position in it); the last block is incomplete, or empty."""
    blocks = values.shape[-1] // size + 1
    return F.pad(values, (0, blocks * size - values.shape[-1])).unflatten(-1, (blocks, size))


class RunningGroupNorm(nn.Module):
    """Group norm with a group per channel, for a wav that is heard as it comes.

    Args:
        block: outputs of the convolution that one frame adds.
    """

    def __init__(self, channels: int, block: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.block, self.eps = block, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor, moments: RunningMoments | None = None) -> Tensor:  # (batch, channel, frame)
        """`moments`: of what was heard before `features`, which are the beginning if there are none."""
        if moments is None:
            moments = RunningMoments.before(features, len(self.weight))
        frames, values = features.shape[2], in_blocks(features, self.block)
        mean, variance = moments.follow(values)
        scale = torch.rsqrt(variance + self.eps) * self.weight[:, None, None]
        normed = torch.addcmul(self.bias[:, None, None] - mean * scale, values, scale)
        return normed.flatten(2)[..., :frames].to(features.dtype)
