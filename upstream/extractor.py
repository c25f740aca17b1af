"""From waveform to the projected features P: convolutions, their norms, the projection."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import SAMPLE_RATE, EncoderConfig
from .waveforms import frame_mask

BLOCK_SECONDS = 2.0  # of audio in the convolutions at a time, in inference on a CPU: fits its cache
SAMPLE_BLOCK = 1 << 18  # samples in memory at a time while the covariance of their windows is summed


def faster_by_row(states: Tensor) -> bool:
    """Whether a batch should be computed row by row: on a CPU batching gains nothing, and padding costs time.

    Not with gradients, nor in a traced graph, which must serve batches.
    """
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling() or states.device.type != "cpu")


class ChannelGroupNorm(nn.GroupNorm):
    """Group norm with a group per channel, whose statistics are those of an utterance's valid frames."""

    def forward(self, input: Tensor, lengths: Tensor | None = None) -> Tensor:  # (batch, channel, frame)
        if lengths is None:
            return super().forward(input)
        mask = frame_mask(lengths, input.shape[2])[:, None]  # (batch, 1, frame)
        count = lengths.to(torch.float32)[:, None, None]
        values = input.float().masked_fill(~mask, 0.0)
        mean = values.sum(dim=2, keepdim=True) / count
        variance = ((values - mean) * mask).square().sum(dim=2, keepdim=True) / count
        return self.with_moments(values, mean, variance).to(input.dtype)

    def with_moments(self, values: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """The norm with known statistics, (batch, channel, 1) each."""
        scale = torch.rsqrt(variance + self.eps) * self.weight[:, None]
        return torch.addcmul(self.bias[:, None] - mean * scale, values, scale)


class PrunedLayerNorm(nn.LayerNorm):
    """Layer norm over `width` channels of which some were pruned: those were zero and still count.

    With C = width and the remaining channels K: mean = sum_K x / C,
    variance = (sum_K (x - mean)^2 + (C - |K|) mean^2) / C.
    """

    def __init__(self, channels: int, width: int, eps: float = 1e-5) -> None:
        super().__init__(channels, eps)
        self.width = width

    def forward(self, input: Tensor) -> Tensor:  # (..., channel)
        return self.with_zero_level(input)[0]

    def with_zero_level(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """The normalised channels, and (..., 1) a pruned one's value before weight and bias: -mean / sigma."""
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        mean = values.sum(dim=-1, keepdim=True) / self.width
        pruned = (self.width - values.shape[-1]) * mean.square()
        variance = ((values - mean).square().sum(dim=-1, keepdim=True) + pruned) / self.width
        scale = torch.rsqrt(variance + self.eps)
        return ((values - mean) * scale * self.weight + self.bias).to(input.dtype), (-mean * scale).to(input.dtype)


def _layer_norm(channels: int, width: int, eps: float = 1e-5) -> nn.LayerNorm:
    return PrunedLayerNorm(channels, width, eps) if width > channels else nn.LayerNorm(channels, eps)


class Convolution(nn.Conv1d):
    """A convolution of one tap is computed as a matrix product, four times as fast as by convolution kernels."""

    def forward(self, input: Tensor) -> Tensor:  # (batch, channel, frame)
        if self.weight.shape[2] * self.stride[0] > 1 or torch.compiler.is_compiling():
            return super().forward(input)
        output = self.weight[:, :, 0].expand(len(input), -1, -1).bmm(input)  # `@` would copy the batch
        return output if self.bias is None else output + self.bias[:, None]


class ConvLayer(nn.Module):
    """Convolution, norm (group norm, layer norm over channels, or none), GELU."""

    def __init__(self, in_channels: int, index: int, config: EncoderConfig) -> None:
        super().__init__()
        channels, kernel, stride = config.conv_layers[index]
        self.conv = Convolution(in_channels, channels, kernel, stride, bias=config.conv_bias)
        self.layer_norm: nn.Module | None = None
        if config.conv_norm == "layer":
            self.layer_norm = _layer_norm(channels, config.norm_width(index))
        elif index == 0:
            self.layer_norm = ChannelGroupNorm(channels, channels)  # eps 1e-5, whatever layer_norm_eps is

    def forward(
        self, features: Tensor, lengths: Tensor | None, moments: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:  # (batch, channel, frame)
        """`moments`: statistics of the group norm, if `features` are only a part of the utterance."""
        features, norm = self.conv(features), self.layer_norm
        if isinstance(norm, ChannelGroupNorm):
            features = norm(features, lengths) if moments is None else norm.with_moments(features, *moments)
        elif norm is not None:
            features = norm(features.transpose(1, 2)).transpose(1, 2)
        return F.gelu(features)

    def moments(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance over time of the first convolution's output, (channel, 1) each, without computing it.

        A channel is w'u(t) over the windows u of the waveform (sample,): its mean is w'E[u], its variance w'Cov(u)w.
        """
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        total = waveform.new_zeros(kernel, dtype=torch.float64)
        squares = waveform.new_zeros(kernel, kernel, dtype=torch.float64)
        windows = waveform.unfold(0, kernel, stride)  # (frame, tap)
        for block in windows.split(SAMPLE_BLOCK // kernel):
            values = block.double()
            total += values.sum(dim=0)
            squares += values.T @ values
        mean = total / len(windows)
        covariance = squares / len(windows) - mean[:, None] * mean
        weight = self.conv.weight[:, 0].double()
        variance = ((weight @ covariance) * weight).sum(dim=1, keepdim=True).clamp(min=0)
        mean = (weight @ mean)[:, None]
        if self.conv.bias is not None:
            mean = mean + self.conv.bias[:, None]
        return mean.to(waveform.dtype), variance.to(waveform.dtype)


class FeatureExtractor(nn.Module):
    """The convolutional extractor, without padding: valid frames only see valid samples."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.frame_multiple = config.frame_multiple
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
        extract = self._by_row if faster_by_row(waveforms) else self._unblocked
        features = extract(waveforms, lengths)
        if self.frame_multiple > 1:  # with 1, a traced graph would depend on the remainder
            features = features[:, : features.shape[1] - features.shape[1] % self.frame_multiple]
        return features

    def moments(self, waveform: Tensor) -> tuple[Tensor, Tensor] | None:
        """Statistics of the group norm over a wav (sample,), which every chunk of it needs; None without the norm."""
        first = self.conv_layers[0]
        assert isinstance(first, ConvLayer)
        return first.moments(waveform) if isinstance(first.layer_norm, ChannelGroupNorm) else None

    def chunk(self, waveform: Tensor, moments: tuple[Tensor, Tensor] | None) -> Tensor:
        """A chunk (sample,) of a wav with these `moments` -> (frame, channel), `BLOCK_SECONDS` at a time."""
        size = max(1, int(BLOCK_SECONDS * SAMPLE_RATE) // self.hop)  # in frames
        frames = (len(waveform) - self.field) // self.hop + 1
        starts = range(0, frames, size)
        ends = (((min(start + size, frames) - 1) * self.hop + self.field) for start in starts)
        blocks = (waveform[None, start * self.hop : end] for start, end in zip(starts, ends, strict=True))
        return torch.cat([self._unblocked(block, None, moments)[0] for block in blocks])

    def _unblocked(
        self, waveforms: Tensor, lengths: Tensor | None, moments: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        features = waveforms[:, None]
        for index, (layer, (kernel, stride)) in enumerate(zip(self.conv_layers, self.strides, strict=True)):
            lengths = None if lengths is None else (lengths - kernel) // stride + 1
            features = layer(features, lengths, None if index else moments)
        features = features.transpose(1, 2)  # (batch, frame, channel)
        return features if self.scale is None else features * self.scale

    def _by_row(self, waveforms: Tensor, lengths: Tensor | None) -> Tensor:
        """One utterance after the other, without padding, which gives zeros."""
        frames = (waveforms.shape[1] - self.field) // self.hop + 1
        rows = []
        for row, waveform in enumerate(waveforms):
            valid = waveform if lengths is None else waveform[: int(lengths[row])]
            features = self.chunk(valid, self.moments(valid))
            rows.append(F.pad(features, (0, 0, 0, frames - len(features))))
        return torch.stack(rows)


class FeatureProjection(nn.Module):
    """Layer norm over the extractor's channels and, unless the widths agree by design, a linear layer.

    Pruned channels were zero before the layer norm but not after it, where each was -mean / sigma times its weight plus
    its bias. The biases are part of the projection's bias; the rest is a single column for all of them.
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
