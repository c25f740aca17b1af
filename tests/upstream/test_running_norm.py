"""The norm of what has been heard: the plain recursion, whatever the pieces, and nothing from the future."""

import pytest
import torch
from torch import Tensor

from upstream import running_norm
from upstream.running_norm import RunningGroupNorm, RunningMoments

BLOCK = 4


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def recursion(features: Tensor, memory: int) -> Tensor:
    """(channel, frame) -> the same, block by block; in a mean the latest block counts for at least 1 / memory."""
    blocks, mean, square, normed = features.double().split(BLOCK, dim=1), 0.0, 0.0, []
    for index, block in enumerate(blocks):
        if index:
            rate = max(1 / index, 1 / memory)
            before = blocks[index - 1]
        else:
            rate, before = 1.0, block
        mean = mean + rate * (before.mean(dim=1, keepdim=True) - mean)
        square = square + rate * (before.square().mean(dim=1, keepdim=True) - square)
        normed.append((block - mean) / (square - mean**2 + 1e-5).sqrt())
    return torch.cat(normed, dim=1).float()


@pytest.mark.parametrize("memory", [1, 5, 100])
@pytest.mark.parametrize("frames", [7, 8, 41, 90])
def test_it_is_the_recursion(monkeypatch: pytest.MonkeyPatch, memory: int, frames: int) -> None:
    monkeypatch.setattr(running_norm, "MEMORY", memory)
    monkeypatch.setattr(running_norm, "AT_ONCE", 6)
    features = 3.0 * noise(2, 3, frames) + 1.0
    for row, normed in zip(features, RunningGroupNorm(3, BLOCK)(features), strict=True):
        torch.testing.assert_close(normed, recursion(row, memory), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("memory", [5, 100])
def test_pieces_go_on_from_one_another(monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
    monkeypatch.setattr(running_norm, "MEMORY", memory)
    norm, features = RunningGroupNorm(3, BLOCK), noise(2, 3, 61)
    whole, moments, parts = norm(features), RunningMoments.before(features, 3), []
    for first, last in ((0, 12), (12, 16), (16, 60)):  # each with a part of the block behind it
        parts.append(norm(features[:, :, first : last + 1], moments)[:, :, :-1])
    torch.testing.assert_close(torch.cat(parts, dim=2), whole[:, :, :-1], atol=1e-6, rtol=1e-5)
    assert moments.blocks.item() == min(15, memory)


def test_once_it_has_heard_enough_it_is_the_group_norm_of_a_steady_sound() -> None:
    features = 5.0 * noise(1, 2, 4_000) + 2.0
    normed, expected = RunningGroupNorm(2, BLOCK)(features).detach(), torch.nn.GroupNorm(2, 2)(features).detach()
    assert float((normed - expected)[:, :, 2_000:].abs().max()) < 0.2
    assert float((normed - expected)[:, :, :100].abs().max()) > 0.2


def test_gradients_go_through_the_statistics() -> None:
    features = noise(1, 2, 24).requires_grad_()
    RunningGroupNorm(2, BLOCK)(features)[:, :, -1].sum().backward()
    assert features.grad is not None
    reaches = features.grad[0].abs().sum(dim=0) > 0
    assert reaches.tolist() == [True] * 20 + [False] * 3 + [True]
