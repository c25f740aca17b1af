"""From waveform to the projected features P: convolutions, their norms, the projection."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import EncoderConfig


def frame_mask(lengths: Tensor, frames: int) -> Tensor:
    """True where a frame is valid: lengths (batch,) -> (batch, frame)."""
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


def normalize_waveforms(waveforms: Tensor, lengths: Tensor) -> Tensor:
    """Zero mean and unit variance over each wav's valid samples, zeros elsewhere; (batch, sample) both ways."""
    mask = frame_mask(lengths, waveforms.shape[1])
    count = lengths[:, None].to(waveforms.dtype)
    mean = waveforms.sum(dim=1, keepdim=True) / count  # padding is already zero
    centred = (waveforms - mean) * mask
    variance = centred.square().sum(dim=1, keepdim=True) / count
    return centred / torch.sqrt(variance + 1e-7)


class ChannelGroupNorm(nn.GroupNorm):
    """Group norm with a group per channel whose statistics come from an utterance's valid frames only."""

    def forward(self, input: Tensor, lengths: Tensor | None = None) -> Tensor:  # (batch, channel, frame)
        if lengths is None:
            return super().forward(input)
        mask = frame_mask(lengths, input.shape[2])[:, None]  # (batch, 1, frame)
        count = lengths.to(torch.float32)[:, None, None]
        values = input.float().masked_fill(~mask, 0.0)
        mean = values.sum(dim=2, keepdim=True) / count
        variance = ((values - mean) * mask).square().sum(dim=2, keepdim=True) / count
        scale = torch.rsqrt(variance + self.eps) * self.weight[:, None]
        return (values * scale + (self.bias[:, None] - mean * scale)).to(input.dtype)


class ConvLayer(nn.Module):
    """Convolution, norm (group norm, layer norm over channels, or none), GELU."""

    def __init__(self, in_channels: int, layer: tuple[int, int, int], config: EncoderConfig, group_norm: bool) -> None:
        super().__init__()
        channels, kernel, stride = layer
        self.conv = nn.Conv1d(in_channels, channels, kernel, stride, bias=config.conv_bias)
        self.layer_norm: nn.Module | None = None
        if group_norm:
            self.layer_norm = ChannelGroupNorm(channels, channels)  # eps 1e-5 whatever layer_norm_eps says
        elif config.conv_norm == "layer":
            self.layer_norm = nn.LayerNorm(channels)

    def forward(self, features: Tensor, lengths: Tensor | None) -> Tensor:  # (batch, channel, frame)
        features = self.conv(features)
        if isinstance(self.layer_norm, ChannelGroupNorm):
            features = self.layer_norm(features, lengths)
        elif self.layer_norm is not None:
            features = self.layer_norm(features.transpose(1, 2)).transpose(1, 2)
        return F.gelu(features)


class FeatureExtractor(nn.Module):
    """The convolutional extractor. Unpadded convolutions: a valid frame sees valid samples only."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.strides = [(kernel, stride) for _, kernel, stride in config.conv_layers]
        in_channels = 1
        self.conv_layers = nn.ModuleList()
        for index, layer in enumerate(config.conv_layers):
            group_norm = index == 0 and config.conv_norm == "group"
            self.conv_layers.append(ConvLayer(in_channels, layer, config, group_norm))
            in_channels = layer[0]
        self.scale = nn.Parameter(torch.ones(in_channels)) if config.feature_scale else None

    def forward(self, waveforms: Tensor, lengths: Tensor | None) -> Tensor:
        """(batch, sample) -> (batch, frame, channel); `lengths` (batch,) in samples, None when all are full."""
        features = waveforms[:, None]
        for layer, (kernel, stride) in zip(self.conv_layers, self.strides, strict=True):
            lengths = None if lengths is None else (lengths - kernel) // stride + 1
            features = layer(features, lengths)
        features = features.transpose(1, 2)  # (batch, frame, channel)
        return features if self.scale is None else features * self.scale


class FeatureProjection(nn.Module):
    """Layer norm over the extractor's channels and, unless the widths agree by design, a linear layer."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        channels = config.conv_layers[-1][0]
        self.layer_norm = nn.LayerNorm(channels, eps=config.layer_norm_eps) if config.feature_norm else None
        self.projection = nn.Linear(channels, config.embed_dim) if config.projection else None

    def forward(self, features: Tensor) -> Tensor:  # (batch, frame, channel)
        if self.layer_norm is not None:
            features = self.layer_norm(features)
        return features if self.projection is None else self.projection(features)
