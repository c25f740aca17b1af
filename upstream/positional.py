"""How an encoder represents the order of frames: positional convolutions, or a table."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import EncoderConfig
from .convolution import convolves
from .families import FAMILIES


class PositionalConvolution(nn.Module):
    """Grouped convolution over frames, weight norm over its taps (the last dimension), GELU."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width, groups = config.embed_dim, config.positional_groups
        self.kernel, self.groups, self.before = config.positional_kernel, groups, config.positional_reach
        self.weight_g = nn.Parameter(torch.ones(1, 1, self.kernel))
        self.weight_v = nn.Parameter(torch.empty(width, width // groups, self.kernel))
        self.bias = nn.Parameter(torch.zeros(width))

    def initialize(self) -> None:
        nn.init.normal_(self.weight_v, std=2.0 / math.sqrt(self.kernel * self.weight_v.shape[0]))
        with torch.no_grad():
            self.weight_g.copy_(self.weight_v.norm(dim=(0, 1), keepdim=True))

    def forward(self, states: Tensor, mask: Tensor | None = None, past: Tensor | None = None) -> Tensor:
        """states (batch, frame, channel), padded frames zero -> the term to add to them; the mask is unused.

        Args:
            past: the `before` preceding frames, in place of zeros.
        """
        weight = self.weight_v * (self.weight_g / self.weight_v.norm(dim=(0, 1), keepdim=True))
        if past is not None or convolves(states):
            behind = 0 if self.before == self.kernel - 1 else self.before
            inputs = F.pad(states, (0, 0, self.before, behind)) if past is None else torch.cat([past, states], dim=1)
            positions = F.conv1d(inputs.transpose(1, 2), weight, self.bias, groups=self.groups)
            positions = positions[:, :, : states.shape[1]].transpose(1, 2)  # an even kernel adds a frame
        else:
            positions = self._by_spectra(states, weight) + self.bias
        return F.gelu(positions)

    def _by_spectra(self, states: Tensor, weight: Tensor) -> Tensor:
        """The convolution as a product for each frequency, in overlapping blocks of frames (overlap-save).

        128 taps take a fraction of the operations in this form, and the groups' widths rarely suit a GPU's convolutions
        well. Blocks of two kernels' length keep the weight's spectrum small, however long the wav.
        """
        batch, frames, width = states.shape
        size, step = 2 * self.kernel, self.kernel + 1  # frames in a block, and frames that each block adds
        blocks = -(-frames // step)
        states = F.pad(states, (0, 0, self.before, blocks * step + self.kernel - 1 - frames - self.before))
        precise = torch.promote_types(states.dtype, torch.float32)
        spectra = torch.fft.rfft(states.to(precise).unfold(1, size, step), dim=3)  # (batch, block, channel, frequency)
        by_group = spectra.view(batch * blocks, self.groups, -1, spectra.shape[3]).permute(3, 1, 0, 2)
        kernels = torch.fft.rfft(weight.to(precise), n=size, dim=2).conj()  # (out, in, frequency)
        by_frequency = kernels.unflatten(0, (self.groups, -1)).permute(3, 0, 2, 1)  # (frequency, group, in, out)
        products = (by_group @ by_frequency).permute(2, 1, 3, 0)  # (batch x block, group, out, frequency)
        positions = torch.fft.irfft(products, n=size, dim=3)[..., :step]
        positions = positions.permute(0, 3, 1, 2).reshape(batch, blocks * step, width)
        return positions[:, :frames].to(states.dtype)


class PositionalStack(nn.Module):
    """data2vec's stack of convolutions over frames: each grouped, with a layer norm over channels, and GELU."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width, kernel = config.embed_dim, config.positional_kernel
        self.layers = nn.ModuleList(
            nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=config.positional_groups)
            for _ in range(config.positional_layers)
        )

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """states (batch, frame, channel), padded frames zero; mask (batch, frame, 1), True at valid frames."""
        for convolution in self.layers:
            outputs = convolution(states.transpose(1, 2))[:, :, : states.shape[1]].transpose(1, 2)
            # every convolution sees zeros beyond the end of a wav, as it would without padding
            states = F.gelu(F.layer_norm(outputs, outputs.shape[2:])).masked_fill(~mask, 0.0)
        return states


class PositionTable(nn.Module):
    """Whisper's vector for each frame, as stored."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(config.max_frames, config.embed_dim))

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """states (batch, frame, channel) -> (frame, channel)."""
        return self.table[: states.shape[1]]


def positional_part(config: EncoderConfig) -> nn.Module:
    """The positional module of a family: called with (states, mask), its output is added to the states."""
    if config.whisper:
        return PositionTable(config)
    return PositionalStack(config) if FAMILIES[config.family].positional_stack else PositionalConvolution(config)
