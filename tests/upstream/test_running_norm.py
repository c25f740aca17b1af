"""The norm of what has been heard: the plain recursion, whatever the pieces, and nothing from the future."""

import pytest
import torch
from torch import Tensor

from upstream import running_norm
from upstream.running_norm import RunningGroupNorm, RunningMoments

BLOCK, FIELD = 4, 9  # outputs that a frame adds, and those under it


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
@pytest.mark.parametrize("frames", [9, 12, 41, 90])
def test_it_is_the_recursion(monkeypatch: pytest.MonkeyPatch, memory: int, frames: int) -> None:
    monkeypatch.setattr(running_norm, "MEMORY", memory)
    monkeypatch.setattr(running_norm, "GROUP", 3)
    features = 3.0 * noise(2, 3, frames) + 1.0
    for row, normed in zip(features, RunningGroupNorm(3, BLOCK, FIELD)(features), strict=True):
        torch.testing.assert_close(normed, recursion(row, memory), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("memory", [5, 100])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_pieces_go_on_from_one_another(monkeypatch: pytest.MonkeyPatch, memory: int, offset: float) -> None:
    monkeypatch.setattr(running_norm, "MEMORY", memory)
    norm, features = RunningGroupNorm(3, BLOCK, FIELD), noise(2, 3, 61) + offset
    whole, moments, parts = norm(features), RunningMoments.before(features, 3), []
    for first, frames in ((0, 3), (3, 1), (4, 9)):  # each with what lies under its last frame besides
        piece = features[:, :, first * BLOCK : (first + frames - 1) * BLOCK + FIELD]
        parts.append(norm(piece, moments)[:, :, : frames * BLOCK])
    torch.testing.assert_close(torch.cat(parts, dim=2), whole[:, :, :52], atol=1e-6 + 1e-6 * offset, rtol=1e-5)
    assert moments.blocks.item() == min(13, memory)


def test_an_offset_changes_nothing() -> None:
    features = noise(1, 2, 400)
    norm = RunningGroupNorm(2, BLOCK, FIELD)
    torch.testing.assert_close(norm(features + 300.0), norm(features), atol=1e-3, rtol=1e-3)


def test_once_it_has_heard_enough_it_is_the_group_norm_of_a_steady_sound() -> None:
    features = 5.0 * noise(1, 2, 4_000) + 2.0
    normed, expected = RunningGroupNorm(2, BLOCK, FIELD)(features).detach(), torch.nn.GroupNorm(2, 2)(features).detach()
    assert float((normed - expected)[:, :, 2_000:].abs().max()) < 0.2
    assert float((normed - expected)[:, :, :100].abs().max()) > 0.2


def test_gradients_go_through_the_statistics() -> None:
    features = noise(1, 2, 24).requires_grad_()
    RunningGroupNorm(2, BLOCK, FIELD)(features)[:, :, -1].sum().backward()
    assert features.grad is not None
    reaches = features.grad[0].abs().sum(dim=0) > 0
    assert reaches.tolist() == [True] * 20 + [False] * 3 + [True]


def test_blocks_that_are_assumed_count_like_heard_ones() -> None:
    """Twice three blocks of mean 5 and variance 2, then blocks of 11 (twice) and of 1: by hand."""
    values = torch.tensor([11.0, 11.0, 1.0])[None, None, :, None].expand(1, 1, 3, BLOCK)
    moments = RunningMoments.before(torch.zeros(1, 0), 1)
    for _ in range(2):  # the second time nothing
        moments.assume(5.0, 2.0, 3)
    mean, variance = moments.follow(torch.nn.functional.pad(values, (0, 0, 0, 1)), 2)
    torch.testing.assert_close(mean.flatten(), torch.tensor([5.0, 26 / 4, 37 / 5, 38 / 6]))
    squares = torch.tensor([27.0, (3 * 27 + 121) / 4, (3 * 27 + 2 * 121) / 5, (3 * 27 + 2 * 121 + 1) / 6])
    torch.testing.assert_close(variance.flatten(), squares - mean.flatten().square())
    assert moments.blocks.item() == 5
    moments.assume(0.0, 1.0, 9)
    assert moments.blocks.item() == 5
