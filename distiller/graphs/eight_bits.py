"""An encoder for a graph in which linear layers and convolutions are matrix products of 8-bit integers.

Linear layers follow norms, so one scale is enough for the inputs of each: the range measured on audio. The inputs of
convolutions are not normalised: in a pause they are a hundredth of what they are elsewhere, and a single scale would
round them to zero. There each window has its own scale, from its lowest and its highest value.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upstream.attention import PositionGate
from upstream.encoder import SpeechEncoder
from upstream.extractor import ChannelGroupNorm, ConvLayer, FeatureExtractor
from upstream.running_norm import RunningGroupNorm
from upstream.waveforms import frame_mask

OPSET = 20  # the first with GELU as one operator
STEPS = 255  # of unsigned 8 bits
ZERO = 64  # the integer that represents 0 in outputs of a GELU, few of which are negative
TINY = 1e-9

Range = tuple[float, float]  # the lowest and the highest value


class EightBitWeight(nn.Module):
    """A weight (out, in, tap) as signed integers (tap x in, out) with a scale for each output."""

    integers: Tensor
    scales: Tensor
    zeros: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        values = weight.detach().permute(2, 1, 0).flatten(0, 1)
        scales = values.abs().amax(dim=0).clamp(min=TINY) / 127
        self.register_buffer("scales", scales)
        self.register_buffer("integers", (values / scales).round().to(torch.int8))
        self.register_buffer("zeros", torch.zeros_like(self.integers[0]))

    def forward(self) -> Tensor:
        return dequantize(self.integers, self.scales, self.zeros)


class EightBitLinear(nn.Module):
    """A linear layer whose inputs have one scale, for a range of values; values beyond it are clamped."""

    scale: Tensor
    zero: Tensor

    def __init__(self, linear: nn.Linear, inputs: Range) -> None:
        super().__init__()
        low, high = min(inputs[0], 0.0), max(inputs[1], 0.0)
        scale = max(high - low, TINY) / STEPS
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("zero", torch.tensor(round(-low / scale), dtype=torch.uint8))
        self.weight, self.bias = EightBitWeight(linear.weight[..., None]), linear.bias

    def forward(self, states: Tensor) -> Tensor:  # (..., in) -> (..., out)
        inputs = dequantize(quantize(states, self.scale, self.zero), self.scale, self.zero)
        products = inputs @ self.weight()
        return products if self.bias is None else products + self.bias


class EightBitConvolution(nn.Module):
    """A convolution over outputs of a GELU, with a separate scale for each window."""

    one: Tensor
    zero: Tensor

    def __init__(self, convolution: nn.Conv1d) -> None:
        super().__init__()
        self.kernel, self.stride = convolution.kernel_size[0], convolution.stride[0]
        self.weight, self.bias = EightBitWeight(convolution.weight), convolution.bias
        self.register_buffer("one", torch.tensor(1.0))
        self.register_buffer("zero", torch.tensor(ZERO, dtype=torch.uint8))

    def forward(self, rows: Tensor) -> Tensor:  # (batch, row, in) -> (batch, window, out)
        of_rows = torch.maximum(rows.amax(dim=2) / (STEPS - ZERO), rows.amin(dim=2) / -ZERO).clamp(min=TINY)
        scales = torch.stack(_taps(of_rows, self.kernel, self.stride)).amax(dim=0)  # (batch, window)
        flat = scales.flatten()
        zeros = torch.full_like(flat, ZERO, dtype=torch.uint8)
        taps = [quantize(tap.flatten(0, 1), flat, zeros) for tap in _taps(rows, self.kernel, self.stride)]
        integers = torch.cat(taps, dim=1).unflatten(0, scales.shape)  # (batch, window, tap x in)
        products = dequantize(integers, self.one, self.zero) @ self.weight() * scales[..., None]
        return products if self.bias is None else products + self.bias


class EightBitExtractor(nn.Module):
    """`FeatureExtractor` over (batch, frame, channel); its first layer, on the waveform, stays in 32 bits."""

    def __init__(self, extractor: FeatureExtractor) -> None:
        super().__init__()
        self.layers, self.scale, self.multiple = extractor.conv_layers, extractor.scale, extractor.frame_multiple
        for layer in list(self.layers)[1:]:
            assert isinstance(layer, ConvLayer)
            layer.conv = EightBitConvolution(layer.conv)  # type: ignore[assignment]

    def forward(self, waveforms: Tensor, lengths: Tensor | None) -> Tensor:
        """(batch, sample) -> (batch, frame, channel); `lengths` (batch,) in samples, None if all are full."""
        if lengths is None:
            lengths = torch.full((len(waveforms),), waveforms.shape[1])
        first, *others = self.layers
        assert isinstance(first, ConvLayer)
        rows = F.gelu(_first(first, waveforms, lengths))
        for layer in others:
            assert isinstance(layer, ConvLayer)
            rows = layer.conv(rows)
            rows = F.gelu(rows if layer.layer_norm is None else layer.layer_norm(rows))
        if self.multiple > 1:
            rows = rows[:, : rows.shape[1] - rows.shape[1] % self.multiple]
        return rows if self.scale is None else rows * self.scale


def in_eight_bits(encoder: SpeechEncoder, ranges: Mapping[str, Range]) -> SpeechEncoder:
    """A copy of the encoder with such layers.

    Args:
        ranges: input range of each of `linear_layers`, by its name.
    """
    encoder = copy.deepcopy(encoder)
    assert isinstance(encoder.feature_extractor, FeatureExtractor)
    if not encoder.config.mel_bins:  # log-mel energies and the convolution over them stay in 32 bits
        encoder.feature_extractor = EightBitExtractor(encoder.feature_extractor)  # type: ignore[assignment]
    for name, layer in linear_layers(encoder).items():
        encoder.set_submodule(name, EightBitLinear(layer, ranges[name]))
    return encoder


def linear_layers(encoder: SpeechEncoder) -> dict[str, nn.Linear]:
    """The linear layers by name, except WavLM's gates, which are tiny."""
    gates = [module.linear for module in encoder.modules() if isinstance(module, PositionGate)]
    modules = encoder.named_modules()
    return {name: module for name, module in modules if isinstance(module, nn.Linear) and module not in gates}


def quantize(values: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """round(values / scale) + zero in unsigned 8 bits; scale and zero () or (row,) for values (row, channel)."""
    if torch.compiler.is_compiling():  # a traced graph gets the operator that onnxruntime knows
        return _operator("QuantizeLinear", [values, scale, zero], 0, torch.uint8)
    scale, zero = (value[:, None] if value.ndim else value for value in (scale, zero))
    return ((values / scale).round() + zero).clamp(0, STEPS).to(torch.uint8)


def dequantize(integers: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """(integers - zero) * scale; scale and zero () or (channel,) for integers (..., channel)."""
    if torch.compiler.is_compiling():
        return _operator("DequantizeLinear", [integers, scale, zero], integers.ndim - 1, torch.float32)
    return (integers.float() - zero.float()) * scale


def _operator(name: str, inputs: Sequence[Tensor], axis: int, dtype: torch.dtype) -> Tensor:
    shape = inputs[0].shape
    return torch.onnx.ops.symbolic(name, inputs, {"axis": axis}, dtype=dtype, shape=shape, version=OPSET)


def _taps(rows: Tensor, kernel: int, stride: int) -> list[Tensor]:
    """The inputs of each tap of a convolution: every stride-th row of (batch, row, ...), starting at the tap's."""
    if kernel == stride == 1:
        return [rows]
    last = (rows.shape[1] - kernel) // stride * stride
    return [rows[:, tap : last + tap + 1 : stride] for tap in range(kernel)]


def _first(layer: ConvLayer, waveforms: Tensor, lengths: Tensor) -> Tensor:
    """The first convolution and its norm, (batch, frame, channel); a group norm is folded into the weights.

    As `ConvLayer.moments` and `with_folded_norm`, whose strided views cannot be exported.
    """
    kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
    windows = torch.stack(_taps(waveforms, kernel, stride), dim=2)  # (batch, window, tap)
    weight, norm = layer.conv.weight[:, 0], layer.layer_norm  # (channel, tap)
    if not isinstance(norm, ChannelGroupNorm):
        rows = F.linear(windows, weight, layer.conv.bias)
        if isinstance(norm, RunningGroupNorm):
            return norm(rows.mT).mT
        return rows if norm is None else norm(rows)
    counts = (lengths - kernel) // stride + 1
    valid = windows.double() * frame_mask(counts, windows.shape[1], windows.device)[..., None]
    count = counts.double()[:, None, None]
    mean = valid.sum(dim=1, keepdim=True).mT / count  # (batch, tap, 1)
    covariance = valid.mT @ valid / count - mean @ mean.mT  # (batch, tap, tap)
    precise = weight.double()
    variance = (precise @ covariance * precise).sum(dim=2, keepdim=True).clamp(min=0)
    scale, shift = norm.factors((precise @ mean).float(), variance.float())  # a bias would cancel
    return windows @ (scale * weight).mT + shift.mT
