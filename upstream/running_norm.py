"""Normalisation statistics for streaming: over the audio received so far, not over the whole wav.

A block is the audio that one frame adds, 20 ms. Each block is normalised by the statistics of the blocks before it, the
first by its own, so no frame depends on later audio. Means are over all blocks, up to `MEMORY` of them; after that a
block's weight decays with its age, so the norm adapts to, say, an approaching speaker, however long the stream. That is

    m(b) = (1 - a(b)) m(b - 1) + a(b) x(b)    with a(b) = 1 / min(b + 1, MEMORY),

which `running_means` computes for many blocks at once.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .convolution import without_autocast

MEMORY = 500  # blocks: 10 s
GROUP = 64  # blocks that share one square matrix of weights; time and memory stay linear in the wav's length


class RunningMoments:
    """Running statistics of a batch of wavs.

    Args:
        known: (batch, 3, channel), fp32: each channel's mean in the first block, then the mean and mean square, over
            all blocks, of the difference from that mean. Using differences keeps precision if the offset is large.
        blocks: (1,), number of blocks so far, at most `MEMORY`. A tensor, since a graph carries it between calls.
    """

    def __init__(self, known: Tensor, blocks: Tensor) -> None:
        self.known, self.blocks = known, blocks

    @classmethod
    def before(cls, waveforms: Tensor, channels: int) -> "RunningMoments":
        """The statistics before the first sample of a batch of wavs."""
        known = waveforms.new_zeros(waveforms.shape[0], 3, channels, dtype=torch.float32)
        return cls(known, torch.zeros(1, dtype=torch.int64, device=waveforms.device))

    def assume(self, mean: float, variance: float, blocks: int) -> None:
        """Act as if `blocks` such blocks of every channel preceded the first one; later calls have no effect."""
        begins = self.blocks == 0
        assumed = self.known.new_tensor([mean, 0.0, variance])[:, None]
        self.known = torch.where(begins, assumed, self.known)
        self.blocks = torch.where(begins, blocks, self.blocks)

    def follow(self, values: Tensor, heard: int) -> tuple[Tensor, Tensor]:
        """The next blocks -> mean and variance of everything before each of them.

        Args:
            values: (batch, channel, block, position); the last block may be incomplete, or empty.
            heard: number of blocks to add to the statistics; the next call begins with the block after them.

        Returns:
            (batch, channel, block, 1) each, fp32.
        """
        complete = values[:, :, :-1].to(torch.promote_types(values.dtype, torch.float32))
        variance, mean = torch.var_mean(complete, dim=3, correction=0)
        begins = self.blocks == 0
        first = torch.where(begins, mean[:, :, 0], self.known[:, 0])
        distance = mean - first[..., None]
        found = torch.stack([distance, variance + distance.square()], dim=1)  # (batch, 2, channel, block)
        running = running_means(found, self.known[:, 1:], self.blocks)
        before = torch.where(begins, running[..., 0], self.known[:, 1:])
        self.known = torch.cat([first[:, None], running[..., heard - 1]], dim=1)
        self.blocks = (self.blocks + heard).clamp(max=MEMORY)
        distance, square = torch.cat([before[..., None], running], dim=3)[..., None].unbind(dim=1)
        return first[..., None, None] + distance, (square - distance.square()).clamp(min=0.0)


def running_means(values: Tensor, known: Tensor, before: Tensor) -> Tensor:
    """The running mean at the end of each block, from the blocks' own `values`; (..., block) both.

    It is a product with a matrix of weights, within each group of blocks and again over the ends of the groups.

    Args:
        known: (...), the mean of the `before` (1,) preceding blocks.
    """
    blocks = values.shape[-1]
    if torch.compiler.is_compiling():  # tracing treats a size of one, such as that of all groups but one, as constant
        values = F.pad(values, (0, 2 * GROUP))
    groups = in_blocks(values, GROUP)  # (..., group, block in it)
    positions = before + torch.arange(groups.shape[-2] * GROUP, device=before.device)
    positions = positions.unflatten(0, (groups.shape[-2], GROUP))
    weights = share(positions[:, :, None], positions[:, None]) / (positions[:, None] + 1).clamp(max=MEMORY)
    starts = torch.cat([before - 1, positions[:-1, -1]])  # the last block in front of each group
    with without_autocast(values.device.type):
        own = (groups[..., None, :] @ weights.mT.to(values.dtype))[..., 0, :]
        sums = torch.cat([known[..., None], own[..., :-1, -1]], dim=-1)
        carried = sums @ share(starts[:, None], starts).mT.to(values.dtype)  # (..., group): the mean at its start
    means = own + carried[..., None] * share(positions, starts[:, None])
    return means.flatten(-2)[..., :blocks]


def share(now: Tensor, then: Tensor) -> Tensor:
    """Weight of the mean at the end of block `then` in that at the end of block `now`; 0 for later ones, and for -1."""
    ages = (now - then.clamp(min=MEMORY - 1)).clamp(min=0)
    shares = (1 - 1 / MEMORY) ** ages * (then + 1).clamp(max=MEMORY) / (now + 1).clamp(1, MEMORY)
    return shares.masked_fill(then > now, 0.0)


def in_blocks(values: Tensor, size: int) -> Tensor:
    """(..., position) -> (..., block, position in it); the last block is incomplete or empty."""
    blocks = values.shape[-1] // size + 1
    return F.pad(values, (0, blocks * size - values.shape[-1])).unflatten(-1, (blocks, size))


class RunningGroupNorm(nn.Module):
    """Group norm with a group per channel, for streaming.

    Args:
        block: outputs of the convolution that each frame adds.
        field: outputs in the receptive field of one frame.
    """

    def __init__(self, channels: int, block: int, field: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.block, self.field, self.eps = block, field, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor, moments: RunningMoments | None = None) -> Tensor:  # (batch, channel, output)
        """
        Args:
            features: the outputs for one or more complete frames, but not enough for the next one.
            moments: statistics of the audio before; None if there is none.
        """
        outputs, frames = features.shape[2], (features.shape[2] - self.field) // self.block + 1
        moments = RunningMoments.before(features, len(self.weight)) if moments is None else moments
        values = in_blocks(features, self.block)
        mean, variance = moments.follow(values, frames)
        scale = torch.rsqrt(variance + self.eps) * self.weight[:, None, None]
        normed = torch.addcmul(self.bias[:, None, None] - mean * scale, values, scale)
        return normed.flatten(2)[..., :outputs].to(features.dtype)
