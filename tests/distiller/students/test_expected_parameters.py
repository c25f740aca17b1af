"""The product of probabilities without a question to the device: as `prod`, in values and gradients."""

import pytest
import torch

from distiller.students.expected_parameters import _product


@pytest.mark.parametrize("count", [1, 12, 3072])
def test_product_and_gradient_are_those_of_prod(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    chances = 1 - torch.rand(count, generator=generator, dtype=torch.float64) / count  # a product that is no rounding
    ours, theirs = (chances.clone().requires_grad_() for _ in range(2))
    _product(ours).backward()
    theirs.prod().backward()
    torch.testing.assert_close(_product(chances), chances.prod(), rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_masks_are_counted_exactly_and_their_gradients_are_numbers(dtype: torch.dtype) -> None:
    for mask in ([1.0, 1.0, 1.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0]):
        chances = torch.tensor(mask, dtype=dtype, requires_grad=True)
        product = _product(chances)
        assert float((1 - product).detach()) == 1 - min(mask)
        product.backward()
        assert bool(chances.grad.isfinite().all())
