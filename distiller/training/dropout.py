"""Dropout with cheap random bits on a CPU, and attention with dropout that keeps a single map for its backward pass.

On the CPU torch draws a float for every element, which with the unfused softmax of attention with dropout took a third
of a small encoder's training time. Here one draw of torch's generator serves four elements, 16 bits each: the rate is
p rounded to a multiple of 2^-16, less than 8e-6 away, and kept elements are scaled by exactly that rate.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from upstream.attention import SelfAttention

LEVELS = 1 << 16  # of 16 random bits
LANES = 4  # elements to a draw of 64 bits


def install(encoder: nn.Module) -> None:
    """Replace every dropout in an encoder, that of attention weights included, by this module's."""
    for module in encoder.modules():
        if isinstance(module, SelfAttention):
            module.attend = dropped_attention
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p).train(child.training))


def used_rate(p: float) -> float:
    """The nearest probability below 1 that is a multiple of 2^-16."""
    return min(round(p * LEVELS), LEVELS - 1) / LEVELS


def draw_dropped(shape: torch.Size, p: float) -> Tensor:
    """True with probability `used_rate(p)`, independently for each element, from torch's CPU generator."""
    count = shape.numel()
    draws = torch.empty(-(-count // LANES), dtype=torch.int64).random_(-(2**63), None)
    bits = draws.view(torch.int16)[:count].view(shape)  # uniform from -2^15 to 2^15 - 1
    return bits < round(used_rate(p) * LEVELS) - LEVELS // 2


def is_cheap(values: Tensor) -> bool:
    """Whether this module is faster than torch, whose dropout is fused on GPUs and in compiled graphs."""
    fp32_on_cpu = values.device.type == "cpu" and values.dtype == torch.float32
    return fp32_on_cpu and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()


def dropout(values: Tensor, p: float, training: bool) -> Tensor:
    """As `torch.nn.functional.dropout`."""
    if not (training and p > 0 and is_cheap(values)):
        return F.dropout(values, p, training)
    return _Dropout.apply(values, p)


class Dropout(nn.Dropout):
    """As `torch.nn.Dropout`."""

    def forward(self, input: Tensor) -> Tensor:
        return dropout(input, self.p, self.training)


class _Dropout(torch.autograd.Function):
    """Keeps a byte per element for the backward pass, where torch keeps four."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, p: float) -> Tensor:
        dropped = draw_dropped(values.shape, p)
        ctx.scale = 1 / (1 - used_rate(p))
        ctx.save_for_backward(dropped)
        return torch.where(dropped, 0.0, values).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (dropped,) = ctx.saved_tensors
        return torch.where(dropped, 0.0, gradient).mul_(ctx.scale), None


def dropped_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, p: float) -> Tensor:
    """As `torch.nn.functional.scaled_dot_product_attention` with dropout probability `p`.

    Args:
        query, key, value: (batch, head, frame, channel).
        bias: added to the scores, or boolean, False at masked keys; broadcasts to (batch, head, query, key).
    """
    if not (p > 0 and is_cheap(query)):
        return F.scaled_dot_product_attention(query, key, value, bias, p)
    if bias is not None and bias.dtype == torch.bool:
        bias = torch.zeros_like(bias, dtype=query.dtype).masked_fill_(~bias, -math.inf)
    return _DroppedAttention.apply(query, key, value, bias, p)


class _DroppedAttention(torch.autograd.Function):
    """Keeps a single map A for the backward pass, with dropped weights negated: max(A, 0) are the kept ones.

    With the output O, its gradient D and the scale s: dV = s max(A, 0)' D, dS = max(A, 0) s D V' - |A| (D . O). One
    utterance at a time, so that intermediate maps stay small.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, p: float
    ) -> Tensor:  # (batch, head, query, channel)
        ctx.scale = 1 / (1 - used_rate(p))
        ctx.temperature = 1 / math.sqrt(query.shape[-1])
        ctx.bias_shape = None if bias is None else bias.shape
        batch, heads, frames, _ = query.shape
        signed = query.new_empty(batch, heads, frames, key.shape[2])
        context = torch.empty_like(value)
        for index in range(batch):
            scores = (query[index] * ctx.temperature) @ key[index].mT
            if bias is not None:
                scores += bias[index if len(bias) > 1 else 0]
            weights = torch.softmax(scores, dim=-1, out=scores)
            torch.where(draw_dropped(weights.shape, p), -weights, weights, out=signed[index])
            torch.matmul(signed[index].relu(), value[index] * ctx.scale, out=context[index])
        ctx.save_for_backward(query, key, value, signed, context)
        return context

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch: one argument per output
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        query, key, value, signed, context = ctx.saved_tensors
        gradients = [torch.empty_like(tensor) for tensor in (query, key, value)]
        bias_gradient = gradient.new_zeros(ctx.bias_shape) if ctx.needs_input_grad[3] else None
        for index in range(len(query)):
            kept, outer = signed[index].relu(), gradient[index] * ctx.scale
            gradients[2][index] = kept.mT @ outer
            scores = (outer @ value[index].mT).mul_(kept)  # the gradient of the scores before softmax, from here on
            share = (gradient[index] * context[index]).sum(dim=-1, keepdim=True)  # (head, query, 1)
            scores.addcmul_(torch.abs(signed[index], out=kept), share, value=-1.0)
            if bias_gradient is not None:
                row = bias_gradient[index if len(bias_gradient) > 1 else 0]
                row += scores.sum_to_size(row.shape)
            scores.mul_(ctx.temperature)
            gradients[0][index] = scores @ key[index]
            gradients[1][index] = scores.mT @ query[index]
        return *gradients, bias_gradient, None
