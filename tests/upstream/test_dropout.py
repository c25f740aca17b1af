"""Dropout with cheap random numbers."""

import pytest
import torch

from upstream.dropout import Dropout


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5, 1e-6])
def test_elements_are_dropped_at_the_rate_and_the_mean_stays(rate: float) -> None:
    torch.manual_seed(0)
    inputs = torch.ones(1000, 1001, requires_grad=True)
    output = Dropout(rate)(inputs)
    dropped = float((output == 0).float().mean())
    assert dropped == pytest.approx(rate, abs=5 * (rate / inputs.numel()) ** 0.5 + 2**-17)
    assert float(output.detach().mean()) == pytest.approx(1.0, abs=0.01)
    assert len(output.unique()) <= 2  # what is kept has one factor
    output.sum().backward()
    torch.testing.assert_close(inputs.grad, output.detach())


def test_random_numbers_follow_the_seed_and_neighbours_are_independent() -> None:
    layer, inputs = Dropout(0.5), torch.ones(4001)

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return layer(inputs)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    kept = (drawn(3) > 0).float() - 0.5
    for distance in (1, 2, 3, 4, 8):
        assert abs(float((kept[distance:] * kept[:-distance]).mean())) < 0.02  # 5 standard deviations of 0.25 / 63


def test_nothing_is_dropped_in_evaluation_and_everything_at_rate_one() -> None:
    inputs = torch.randn(3, 5)
    assert torch.equal(Dropout(0.3).eval()(inputs), inputs)
    assert torch.equal(Dropout(0.0)(inputs), inputs)
    assert torch.equal(Dropout(1.0)(inputs), torch.zeros(3, 5))
    assert Dropout(0.3)(inputs.bfloat16()).dtype == torch.bfloat16
    assert Dropout(0.3)(torch.zeros(0, 4)).shape == (0, 4)
