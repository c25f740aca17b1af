"""Convolutions in the form that is fastest on the device: convolution kernels, or matrix products."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

PRODUCTS = ("cpu", "cuda", "meta")  # devices for matrix products on strided views, and for FFTs; MPS may lack them


def faster_by_row(states: Tensor) -> bool:
    """Whether to compute a batch row by row: on a CPU batching gains nothing, and padding costs time.

    Not with gradients, nor in a traced graph, which must handle batches.
    """
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling() or states.device.type != "cpu")


def convolves(states: Tensor) -> bool:
    """Whether to use convolution kernels: fastest in CPU inference, and required in exports."""
    return faster_by_row(states) or torch.compiler.is_compiling() or states.device.type not in PRODUCTS


def without_autocast(device: str) -> AbstractContextManager[object]:
    """A context in which operators compute in their inputs' precision, on every type of device."""
    available = torch.amp.autocast_mode.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if available else nullcontext()


class Convolution(nn.Conv1d):
    """A convolution over (batch, channel, frame) or over rows; with one tap a matrix product, four times as fast."""

    def forward(self, input: Tensor) -> Tensor:  # (batch, channel, frame)
        if self.weight.shape[2] * self.stride[0] > 1 or torch.compiler.is_compiling():
            return super().forward(input)
        output = self.weight[:, :, 0].expand(len(input), -1, -1).bmm(input)  # `@` would copy the batch
        return output if self.bias is None else output + self.bias[:, None]

    def over_rows(self, rows: Tensor) -> Tensor:
        """The same on (row, channel), as matrix products."""
        device, dtype = rows.device.type, rows.dtype
        if torch.amp.autocast_mode.is_autocast_available(device) and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        bias = None if self.bias is None else self.bias.to(dtype)
        return RowConvolution.apply(rows.to(dtype), self.weight.to(dtype), bias, self.stride[0])


class RowConvolution(torch.autograd.Function):
    """A convolution of kernel k and stride s as ceil(k / s) matrix products, without copying its windows.

    Taps j..j+s-1 of all windows are the rows from j on, s at a time side by side: a view of (window, s x channel). Only
    windows over a single channel are copied: ten samples each, for hundreds of outputs.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        """rows (row, in), weight (out, in, tap), bias (out,) -> (window, out)."""
        taps = weight.permute(2, 1, 0).contiguous()  # (tap, in, out)
        windows = (len(rows) - len(taps)) // stride + 1
        first, *others = _tap_groups(taps, len(taps) if taps.shape[1] == 1 else stride)
        inputs, factor = _windows(rows, first, stride, windows), taps[first].flatten(0, 1)
        output = inputs @ factor if bias is None else torch.addmm(bias, inputs, factor)
        for part in others:
            output.addmm_(_windows(rows, part, stride, windows), taps[part].flatten(0, 1))
        ctx.stride = stride
        ctx.save_for_backward(rows, taps)
        return output

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch: one argument per output
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        rows, taps = ctx.saved_tensors
        of_rows = torch.zeros_like(rows) if ctx.needs_input_grad[0] else None
        of_taps = torch.empty_like(taps) if ctx.needs_input_grad[1] else None
        for part in _tap_groups(taps, ctx.stride):
            if of_rows is not None:
                _windows(of_rows, part, ctx.stride, len(gradient)).addmm_(gradient, taps[part].flatten(0, 1).T)
            if of_taps is not None:
                inputs = _windows(rows, part, ctx.stride, len(gradient))
                of_taps[part] = (inputs.T @ gradient).view_as(taps[part])
        of_bias = gradient.sum(dim=0) if ctx.needs_input_grad[2] else None
        return of_rows, None if of_taps is None else of_taps.permute(2, 1, 0), of_bias, None


def _tap_groups(taps: Tensor, size: int) -> list[slice]:
    return [slice(start, min(start + size, len(taps))) for start in range(0, len(taps), size)]


def _windows(rows: Tensor, taps: slice, stride: int, windows: int) -> Tensor:
    """A view of the rows (row, channel): the inputs of these taps in every window, (window, tap x channel)."""
    channels = rows.shape[1]
    size, step = (windows, (taps.stop - taps.start) * channels), (stride * channels, 1)
    return rows.as_strided(size, step, rows.storage_offset() + taps.start * channels)
