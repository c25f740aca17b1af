"""Convolutions as matrix products: the same numbers and gradients as torch's."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from upstream.convolution import Convolution


def gradients(output: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    upper = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)
    return torch.autograd.grad(output, leaves, upper)


def test_a_convolution_of_one_tap_is_that_convolution() -> None:
    torch.manual_seed(0)
    for bias in (False, True):
        layer, inputs = Convolution(5, 7, 1, 1, bias=bias), torch.randn(2, 5, 11, requires_grad=True)
        expected = F.conv1d(inputs, layer.weight, layer.bias)
        torch.testing.assert_close(layer(inputs), expected)
        leaves = [inputs, *layer.parameters()]
        torch.testing.assert_close(gradients(layer(inputs), leaves), gradients(expected, leaves))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize(("kernel", "stride"), [(10, 5), (3, 2), (2, 2), (5, 2), (7, 3), (1, 1), (2, 3), (4, 1)])
def test_over_rows_equals_the_convolution(kernel: int, stride: int, channels: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer = Convolution(channels, 7, kernel, stride, bias=bias).double()
    for frames in range(kernel, kernel + 2 * stride + 2):
        rows = torch.randn(frames, channels, dtype=torch.float64, requires_grad=True)
        expected = F.conv1d(rows.T[None], layer.weight, layer.bias, stride)[0].T
        found, leaves = layer.over_rows(rows), [rows, *layer.parameters()]
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(gradients(found, leaves), gradients(expected, leaves))


def test_over_rows_follows_autocast() -> None:
    layer, rows = Convolution(3, 4, 3, 2), torch.randn(9, 3)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer.over_rows(rows)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(output.float(), layer.over_rows(rows), atol=0.05, rtol=0.05)
