"""The positional convolution by spectra: the same numbers and gradients as torch's convolution."""

import pytest
import torch

from upstream.positional import PositionalConvolution


@pytest.mark.parametrize("frames", [1, 15, 17, 18, 60])
@pytest.mark.parametrize("kernel", [16, 15, 2])
def test_spectra_equal_the_convolution(tiny_config, monkeypatch, kernel: int, frames: int) -> None:
    torch.manual_seed(0)
    layer = PositionalConvolution(tiny_config(positional_kernel=kernel)).double()
    layer.initialize()
    torch.nn.init.normal_(layer.bias)
    states = torch.randn(2, frames, 48, dtype=torch.float64, requires_grad=True)
    leaves = [states, *layer.parameters()]
    found = layer(states)
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    expected = layer(states)
    torch.testing.assert_close(found, expected)
    upper = torch.randn_like(expected)
    torch.testing.assert_close(torch.autograd.grad(found, leaves, upper), torch.autograd.grad(expected, leaves, upper))


def test_half_precision_states_keep_their_type(tiny_config) -> None:
    layer = PositionalConvolution(tiny_config())
    layer.initialize()
    states = torch.randn(2, 30, 48)
    rounded = layer.bfloat16()(states.bfloat16())
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), layer.float()(states), atol=0.05, rtol=0.05)
