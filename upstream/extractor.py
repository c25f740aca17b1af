"""From waveforms to the projected features P: convolutions, their norms, the projection."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import SAMPLE_RATE, EncoderConfig
from .convolution import Convolution, convolves, faster_by_row
from .running_norm import RunningGroupNorm, RunningMoments
from .waveforms import frame_mask

BLOCK_SECONDS = 2.0  # of audio in the convolutions at a time, in CPU inference, to fit its cache
ALIGNMENT = 8  # inner widths of matrix products are padded to a multiple of this, for tensor cores
SAMPLE_BLOCK = 1 << 18  # samples in memory at a time while the covariance of their windows is summed

# statistics for the group norm of a part of a wav: mean and variance of all of it, or running ones in streaming
Moments = tuple[Tensor, Tensor] | RunningMoments


class ChannelGroupNorm(nn.GroupNorm):
    """Group norm with a group per channel and statistics over an utterance's valid frames."""

    def forward(self, input: Tensor, lengths: Tensor | None = None) -> Tensor:  # (batch, channel, frame)
        if lengths is None:
            return super().forward(input)
        mask = frame_mask(lengths, input.shape[2])[:, None]  # (batch, 1, frame)
        precise = torch.promote_types(input.dtype, torch.float32)
        count = lengths.to(precise)[:, None, None]
        values = input.to(precise).masked_fill(~mask, 0.0)
        mean = values.sum(dim=2, keepdim=True) / count
        variance = ((values - mean) * mask).square().sum(dim=2, keepdim=True) / count
        return self.with_moments(values, mean, variance).to(input.dtype)

    def with_moments(self, values: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """The norm with known statistics, (batch, channel, 1) each."""
        scale, shift = self.factors(mean, variance)
        return torch.addcmul(shift, values, scale)

    def factors(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """The norm with known statistics as scale and shift, (batch, channel, 1) each."""
        scale = torch.rsqrt(variance + self.eps) * self.weight[:, None]
        return scale, self.bias[:, None] - mean * scale


class PrunedLayerNorm(nn.LayerNorm):
    """Layer norm over `width` channels, some of them pruned: these were zero and still count.

    With C = width and the remaining channels K: mean = sum_K x / C,
    variance = (sum_K (x - mean)^2 + (C - |K|) mean^2) / C.
    """

    def __init__(self, channels: int, width: int, eps: float = 1e-5) -> None:
        super().__init__(channels, eps)
        self.width = width

    def forward(self, input: Tensor) -> Tensor:  # (..., channel)
        return self.with_zero_level(input)[0]

    def with_zero_level(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """The normalised channels, and (..., 1) the value of a pruned one before weight and bias: -mean / sigma."""
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        mean = values.sum(dim=-1, keepdim=True) / self.width
        pruned = (self.width - values.shape[-1]) * mean.square()
        variance = ((values - mean).square().sum(dim=-1, keepdim=True) + pruned) / self.width
        scale = torch.rsqrt(variance + self.eps)
        return ((values - mean) * scale * self.weight + self.bias).to(input.dtype), (-mean * scale).to(input.dtype)


def _layer_norm(channels: int, width: int, eps: float = 1e-5) -> nn.LayerNorm:
    return PrunedLayerNorm(channels, width, eps) if width > channels else nn.LayerNorm(channels, eps)


class ConvLayer(nn.Module):
    """Convolution, norm (group norm, layer norm over channels, or none), GELU."""

    def __init__(self, in_channels: int, index: int, config: EncoderConfig) -> None:
        super().__init__()
        channels, kernel, stride = config.conv_layers[index]
        self.conv = Convolution(in_channels, channels, kernel, stride, bias=config.conv_bias)
        self.layer_norm: nn.Module | None = None
        if config.conv_norm == "layer":
            self.layer_norm = _layer_norm(channels, config.norm_width(index))
        elif index == 0 and config.chunk_frames:
            field = (config.min_samples - kernel) // stride + 1
            self.layer_norm = RunningGroupNorm(channels, config.samples_per_frame // stride, field)
        elif index == 0:
            self.layer_norm = ChannelGroupNorm(channels, channels)  # eps 1e-5, whatever layer_norm_eps is

    def forward(
        self, features: Tensor, lengths: Tensor | None, moments: Moments | None = None
    ) -> Tensor:  # (batch, channel, frame)
        """`moments`: statistics for the group norm, if `features` are only part of the utterance."""
        features, norm = self.conv(features), self.layer_norm
        if isinstance(norm, ChannelGroupNorm):
            features = norm.with_moments(features, *moments) if isinstance(moments, tuple) else norm(features, lengths)
        elif isinstance(norm, RunningGroupNorm):
            features = norm(features, moments)
        elif norm is not None:
            features = norm(features.transpose(1, 2)).transpose(1, 2)
        return F.gelu(features)

    def over_rows(self, rows: Tensor) -> Tensor:
        """(row, channel) -> (window, channel), for all norms except group norms."""
        features = self.conv.over_rows(rows)
        return F.gelu(features if self.layer_norm is None else self.layer_norm(features))

    def with_folded_norm(self, waveforms: Tensor, moments: tuple[Tensor, Tensor]) -> Tensor:
        """The first layer with its group norm, as one product per utterance: the norm is folded into the weights.

        Args:
            waveforms: (batch, sample), a whole number of strides.
            moments: as returned by `moments`.

        Returns:
            (batch, sample / stride, channel).
        """
        norm, kernel, stride = self.layer_norm, self.conv.kernel_size[0], self.conv.stride[0]
        assert isinstance(norm, ChannelGroupNorm)
        scale, shift = norm.factors(*moments)
        if self.conv.bias is not None:
            shift = shift + scale * self.conv.bias[:, None]
        weight = torch.cat([scale * self.conv.weight[:, 0], shift], dim=2)  # (batch, channel, tap + 1)
        spare = -(kernel + 1) % ALIGNMENT
        windows = F.pad(waveforms, (0, kernel - stride)).unfold(1, kernel, stride)  # (batch, window, tap)
        windows = F.pad(windows, (0, 1 + spare), value=1.0)
        return F.gelu(windows @ F.pad(weight, (0, spare)).to(windows.dtype).mT)

    def with_running_norm(self, waveforms: Tensor, samples: int, moments: RunningMoments) -> Tensor:
        """As `with_folded_norm`, with a running norm continuing from `moments`; only the first `samples` are audio."""
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        rows, size = self.conv.over_rows(waveforms.flatten()[:, None]), (len(waveforms), waveforms.shape[1] // stride)
        rows = F.pad(rows, (0, 0, 0, size[0] * size[1] - len(rows))).unflatten(0, size)
        heard = rows[:, : (samples - kernel) // stride + 1]
        assert isinstance(self.layer_norm, RunningGroupNorm)
        features = F.gelu(self.layer_norm(heard.mT, moments).mT)
        return F.pad(features, (0, 0, 0, size[1] - features.shape[1])).contiguous()  # as `over_rows` expects

    def moments(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance over time of the first convolution's output, (batch, channel, 1) each, from its input.

        A channel is w'u(t) over the windows u of a wav: its mean is w'E[u], its variance w'Cov(u)w.

        Args:
            waveforms: (batch, sample).
            lengths: (batch,) valid samples.
        """
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        precise = torch.float32 if waveforms.device.type == "mps" else torch.float64
        counts = (lengths - kernel) // stride + 1
        windows = waveforms.unfold(1, kernel, stride)  # (batch, window, tap)
        valid = frame_mask(counts, windows.shape[1], windows.device)[..., None]
        total: Tensor | float = 0.0
        squares: Tensor | float = 0.0
        size = max(1, SAMPLE_BLOCK // kernel)
        for block, mask in zip(windows.split(size, dim=1), valid.split(size, dim=1), strict=True):
            values = block.to(precise) * mask
            total = total + values.sum(dim=1, keepdim=True).mT
            squares = squares + values.mT @ values
        count = counts.to(precise)[:, None, None]
        mean = total / count
        covariance = squares / count - mean @ mean.mT
        weight = self.conv.weight[:, 0].to(precise)  # (channel, tap)
        variance = ((weight @ covariance) * weight).sum(dim=2, keepdim=True).clamp(min=0)
        mean = weight @ mean
        if self.conv.bias is not None:
            mean = mean + self.conv.bias[:, None]
        return mean.to(waveforms.dtype), variance.to(waveforms.dtype)


class FeatureExtractor(nn.Module):
    """The convolutional extractor, without padding: valid frames only see valid samples.

    `hop` (between frames), `field` (under a frame) and `padding` (at both ends of a wav) are in samples.

    Computed as convolutions over (batch, channel, frame) in traced graphs and, block by block, in CPU inference;
    elsewhere as matrix products over (row, channel), with the batch as one long wav.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.frame_multiple, self.padding = config.frame_multiple, 0
        self.strides = [(kernel, stride) for _, kernel, stride in config.conv_layers]
        self.hop = config.samples_per_frame
        self.field = config.min_samples - (config.frame_multiple - 1) * self.hop  # samples under a frame
        in_channels = 1
        self.conv_layers = nn.ModuleList()
        for index, (channels, _, _) in enumerate(config.conv_layers):
            self.conv_layers.append(ConvLayer(in_channels, index, config))
            in_channels = channels
        self.scale = nn.Parameter(torch.ones(in_channels)) if config.feature_scale else None

    def forward(self, waveforms: Tensor, lengths: Tensor | None) -> Tensor:
        """(batch, sample) -> (batch, frame, channel); `lengths` (batch,) in samples, None if all are full."""
        if faster_by_row(waveforms):
            features = self._by_row(waveforms, lengths)
        elif convolves(waveforms):
            features = self._convolved(waveforms, lengths)
        else:
            features = self._over_rows(waveforms, self.moments(waveforms, lengths))
        if self.frame_multiple > 1:  # not for 1: a traced graph would depend on the remainder
            features = features[:, : features.shape[1] - features.shape[1] % self.frame_multiple]
        return features

    def moments(self, waveforms: Tensor, lengths: Tensor | None = None) -> Moments | None:
        """Statistics of the group norm over each wav, needed by every chunk of it; None without the norm.

        In streaming, the statistics before the first chunk, which `chunk` then updates.
        """
        first = self.conv_layers[0]
        assert isinstance(first, ConvLayer)
        if isinstance(first.layer_norm, RunningGroupNorm):
            return RunningMoments.before(waveforms, len(first.layer_norm.weight))
        if not isinstance(first.layer_norm, ChannelGroupNorm):
            return None
        if lengths is None:
            lengths = waveforms.new_full((len(waveforms),), waveforms.shape[1], dtype=torch.int64)
        return first.moments(waveforms, lengths)

    def chunk(self, waveforms: Tensor, moments: Moments | None) -> Tensor:
        """Part of some wavs, (batch, sample) with `padding`, and their `moments` -> its frames (batch, frame, channel).

        On a CPU, `BLOCK_SECONDS` at a time.
        """
        if not convolves(waveforms):
            return self._over_rows(waveforms, moments)
        size = max(1, int(BLOCK_SECONDS * SAMPLE_RATE) // self.hop)  # in frames
        frames = (waveforms.shape[1] - self.field) // self.hop + 1
        starts = range(0, frames, size)
        ends = (((min(start + size, frames) - 1) * self.hop + self.field) for start in starts)
        blocks = (waveforms[:, start * self.hop : end] for start, end in zip(starts, ends, strict=True))
        return torch.cat([self._convolved(block, None, moments) for block in blocks], dim=1)

    def _convolved(self, waveforms: Tensor, lengths: Tensor | None, moments: Moments | None = None) -> Tensor:
        features = waveforms[:, None]
        for index, (layer, (kernel, stride)) in enumerate(zip(self.conv_layers, self.strides, strict=True)):
            lengths = None if lengths is None else (lengths - kernel) // stride + 1
            features = layer(features, lengths, None if index else moments)
        features = features.transpose(1, 2)  # (batch, frame, channel)
        return features if self.scale is None else features * self.scale

    def _over_rows(self, waveforms: Tensor, moments: Moments | None) -> Tensor:
        """The batch as one long wav. No valid frame depends on windows that reach into the next wav."""
        batch, samples = waveforms.shape
        frames = -(-samples // self.hop)  # of each wav, the last of them incomplete
        waveforms = F.pad(waveforms, (0, frames * self.hop - samples))
        rows = waveforms.flatten()[:, None]  # (row, channel)
        for layer in self.conv_layers:
            assert isinstance(layer, ConvLayer)
            if moments is None or layer is not self.conv_layers[0]:
                rows = layer.over_rows(rows)
            elif isinstance(moments, RunningMoments):
                rows = layer.with_running_norm(waveforms, samples, moments).flatten(0, 1)
            else:
                rows = layer.with_folded_norm(waveforms, moments).flatten(0, 1)
        features = F.pad(rows, (0, 0, 0, batch * frames - len(rows))).unflatten(0, (batch, frames))
        features = features[:, : (samples - self.field) // self.hop + 1]
        return features if self.scale is None else features * self.scale

    def _by_row(self, waveforms: Tensor, lengths: Tensor | None) -> Tensor:
        """One utterance at a time, without its padding; padded frames are zeros."""
        frames = (waveforms.shape[1] - self.field) // self.hop + 1
        rows = []
        for row, waveform in enumerate(waveforms):
            valid = waveform if lengths is None else waveform[: int(lengths[row])]
            features = self.chunk(valid[None], self.moments(valid[None]))
            rows.append(F.pad(features, (0, 0, 0, frames - features.shape[1])))
        return torch.cat(rows)


class FeatureProjection(nn.Module):
    """Layer norm over the extractor's channels and, unless the widths agree by design, a linear layer.

    Pruned channels were zero before the layer norm but not after it: there each was -mean / sigma times its weight plus
    its bias. The biases are folded into the projection's bias; the rest is a single column for all of them.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        channels, width = config.conv_layers[-1][0], config.norm_width(-1)
        self.layer_norm = _layer_norm(channels, width, config.layer_norm_eps) if config.feature_norm else None
        self.projection = nn.Linear(channels, config.embed_dim) if config.projection else None
        self.pruned_column: nn.Parameter | None = None
        if isinstance(self.layer_norm, PrunedLayerNorm):
            self.pruned_column = nn.Parameter(torch.zeros(config.embed_dim))

    def forward(self, features: Tensor) -> Tensor:  # (batch, frame, channel)
        if self.projection is None or self.pruned_column is None or not isinstance(self.layer_norm, PrunedLayerNorm):
            features = features if self.layer_norm is None else self.layer_norm(features)
            return features if self.projection is None else self.projection(features)
        features, zero_level = self.layer_norm.with_zero_level(features)
        return self.projection(features) + zero_level * self.pruned_column
