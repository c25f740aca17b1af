"""The peer computes what our step does, only naively."""

import pytest
import torch

from distiller.audio.batch import Batch
from distiller.objectives.star import gram_losses
from distiller.steps.peer import Peer, gram_loss, matching_loss, until
from tests.distiller.conftest import TEACHER

LENGTHS = torch.tensor([6, 4])


@pytest.fixture
def states() -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    return tuple(torch.randn(3, 2, 6, 8)), tuple(torch.randn(3, 2, 6, 5))


def test_its_gram_loss_is_ours(states) -> None:
    teacher, student = states
    mask = until(LENGTHS, 6)
    ours = sum(gram_losses(teacher, student, mask).values())
    torch.testing.assert_close(gram_loss(teacher, student, mask), ours.mean())


def test_padding_does_not_change_its_losses(states) -> None:
    teacher, _ = states
    mask = until(LENGTHS, 6)
    for loss in (gram_loss, lambda *given: matching_loss(given[0][1], given[1][1][..., :8], mask)):
        before = loss(teacher, teacher[:1] + tuple(2 * layer for layer in teacher[1:]), mask)
        changed = tuple(layer.masked_fill(~mask[..., None], 7.0) for layer in teacher)
        after = loss(changed, changed[:1] + tuple(2 * layer for layer in changed[1:]), mask)
        torch.testing.assert_close(before, after)


@pytest.mark.parametrize("method", ["star", "skill"])
def test_it_trains_its_student_alone(method: str) -> None:
    torch.manual_seed(0)
    peer = Peer(method, TEACHER, TEACHER)
    batch = Batch(0.1 * torch.randn(2, 4000), torch.tensor([4000, 3000]), [], [], [])
    loss, terms = peer(batch, {})
    loss.backward()
    assert terms == {}
    assert peer.student.config._attn_implementation == "sdpa"
    assert all(parameter.grad is None for parameter in peer.teacher.parameters())
    trained = {id(p) for group in peer.optimizer().param_groups for p in group["params"]}
    assert trained == {id(p) for module in (peer.student, peer.projections) for p in module.parameters()}
    assert any(parameter.grad is not None for parameter in peer.student.parameters())
