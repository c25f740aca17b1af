"""SKILL's cluster loss: what it is invariant to, what it reduces to, numbers by hand."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from distiller.common.strict import typed
from distiller.objectives.config import CalibrationConfig, ClustersConfig, LayersConfig
from distiller.objectives.registry import build
from tests.distiller.objectives.outputs import plain_config
from upstream.encoder import EncoderOutput
from upstream.errors import UserError


def output(states: torch.Tensor) -> EncoderOutput:
    """From (layer P, 0..L, batch, frame, channel)."""
    return EncoderOutput(states[0], list(states[1:]), states[-1], torch.full((states.shape[1],), states.shape[2]))


def random_states(depth: int = 12, width: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(depth + 2, 2, 5, width, generator=torch.Generator().manual_seed(seed))


def clusters_of(clusters, **keys):
    return build(ClustersConfig(clusters=clusters, **keys), plain_config(12), plain_config(12))


def loss(objective, teacher: torch.Tensor, student: torch.Tensor) -> float:
    mask = torch.ones(teacher.shape[1:3], dtype=torch.bool)
    terms = objective(output(teacher), output(student), mask)
    return (sum(term.weight * term.total for term in terms) / mask.sum()).item()


def test_equal_cluster_means_of_unequal_layers_give_minus_one():
    teacher, student = random_states(), random_states(seed=1)
    clusters = [[1, 2, 3], [4, 5], [6, 7, 8, 9, 10, 11, 12]]
    for cluster in clusters:
        places = [layer + 1 for layer in cluster]
        student[places] += teacher[places].mean(0) - student[places].mean(0)
    assert not torch.allclose(student[2:], teacher[2:], atol=0.1)
    assert loss(clusters_of(clusters), teacher, student) == pytest.approx(-1, abs=1e-5)


def test_order_inside_a_cluster_is_free_and_between_clusters_is_not():
    teacher, student = random_states(), random_states(seed=1)
    objective = clusters_of([[1, 2, 3, 4], [5, 6], [7, 8, 9, 10, 11, 12]])
    before = loss(objective, teacher, student)
    inside = student[[0, 1, 5, 3, 2, 4, *range(6, 14)]]
    across = student[[0, 1, 6, 3, 4, 5, 2, *range(7, 14)]]
    assert loss(objective, teacher, inside) == pytest.approx(before, abs=1e-6)
    assert loss(objective, teacher, across) != pytest.approx(before, abs=1e-3)


def test_singletons_with_equal_projections_are_dphubert():
    torch.manual_seed(0)
    config = plain_config(12)
    dphubert = build(LayersConfig(), config, config)
    skill = clusters_of([[0], [4], [8], [12]])
    for projection in dphubert.projections:
        nn.init.normal_(projection.weight), nn.init.normal_(projection.bias)
    for index, match in enumerate(dphubert.matches):
        skill.projections[index].load_state_dict(dphubert.projections[match.projection].state_dict())
    teacher, student = random_states(), random_states(seed=1)
    assert loss(skill, teacher, student) == pytest.approx(loss(dphubert, teacher, student), abs=1e-6)


def test_by_hand():
    config = plain_config(3, width=2)
    objective = build(ClustersConfig(clusters=[[1, 2], [3]]), config, config)
    teacher, student = torch.full((5, 1, 1, 2), 77.0), torch.full((5, 1, 1, 2), -55.0)
    teacher[2:, 0, 0] = torch.tensor([[2.0, 4.0], [4.0, 4.0], [0.0, 2.0]])  # means (3, 4) and (0, 2)
    student[2:, 0, 0] = torch.tensor([[8.0, 0.0], [0.0, 6.0], [1.0, 0.0]])  # means (4, 3) and (1, 0)
    # cluster 1: 1 - 24/25; cluster 2: 1.5 - 0
    assert loss(objective, teacher, student) == pytest.approx((0.04 + 1.5) / 2, abs=1e-6)


def test_every_cluster_weighs_the_same_whatever_its_size():
    teacher = random_states().requires_grad_(False)
    student = random_states(seed=1).requires_grad_(True)
    objective = build(ClustersConfig(clusters=[[1], [2, 3, 4]], cosine_weight=0.0), plain_config(12), plain_config(12))
    mask = torch.ones(2, 5, dtype=torch.bool)
    sum(term.weight * term.total for term in objective(output(teacher), output(student), mask)).backward()
    influence = student.grad.abs().sum(dim=(1, 2, 3))[2:6]
    torch.testing.assert_close(influence, torch.tensor([1.0, 1 / 3, 1 / 3, 1 / 3]) * influence[0])
    assert influence[0] > 0


def test_projections_start_as_the_identity_one_per_cluster():
    objective = clusters_of([[0, 1], [2, 3], [4]])
    assert len(objective.projections) == 3
    assert all(torch.equal(projection.weight, torch.eye(4)) for projection in objective.projections)
    narrow = build(ClustersConfig(clusters=[[1, 2]]), plain_config(12), plain_config(6, width=6))
    assert narrow.projections[0].weight.shape == (4, 6)


def test_a_shallow_student_answers_with_its_layers_at_the_same_depth():
    clusters = [[0, 1, 2], [3, 4, 5, 6], [7, 8, 9, 10, 11, 12]]
    objective = build(ClustersConfig(clusters=clusters), plain_config(12), plain_config(6))
    assert [match.student for match in objective.matches] == [(0, 1), (2, 3), (4, 5, 6)]
    mapped = build(ClustersConfig(clusters=clusters, layer_map=[1, 2, 3, 8, 9, 12]), plain_config(12), plain_config(6))
    assert [match.student for match in mapped.matches] == [(0, 1, 2), (3,), (4, 5, 6)]
    with pytest.raises(UserError, match=r"objective.layer_map is"):
        build(ClustersConfig(clusters=clusters, layer_map=[1, 2, 2, 8, 9, 12]), plain_config(12), plain_config(6))


def test_representatives_stand_alone():
    clusters = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11, 12]]
    objective = clusters_of(clusters, target="representative", representatives=[2, 9])
    teacher, student = random_states(), random_states(seed=1)
    assert loss(objective, teacher, student) == pytest.approx(loss(clusters_of([[2], [9]]), teacher, student), abs=1e-6)
    with pytest.raises(UserError, match=r"needs objective\.representatives"):
        clusters_of(clusters, target="representative")


def test_padding_reaches_neither_values_nor_gradients():
    objective = clusters_of([[0, 1], [2, 3, 4], [5, 6, 7, 8, 9, 10, 11, 12]])
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    results = []
    for fill in (0.0, float("nan")):
        objective.zero_grad()
        teacher, student = random_states(), random_states(seed=1)
        teacher[:, ~mask], student[:, ~mask] = fill, fill
        student.requires_grad_(True)
        padded = replace(output(student), frame_lengths=mask.sum(dim=1))
        value = sum(term.weight * term.total for term in objective(output(teacher), padded, mask))
        value.backward()
        results.append([value, student.grad, *(parameter.grad for parameter in objective.parameters())])
    assert all(torch.equal(clean, dirty) for clean, dirty in zip(*results, strict=True))
    assert all(bool(value.isfinite().all()) for value in results[1])


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({}, "objective.clusters is not set"),
        ({"clusters": [[1, 2], [2, 3]]}, "objective.clusters is .*no layer twice"),
        ({"clusters": [[1], []]}, "objective.clusters is .*none empty"),
        ({"clusters": [[1, 13]]}, r"objective.clusters is \[1, 13\].*from 0 to 12"),
        ({"clusters": [[1], [2]], "representatives": [1]}, "objective.representatives is"),
        ({"clusters": [[1], [2]], "representatives": [1, 3]}, "objective.representatives is"),
        ({"count": 0}, "objective.count is 0.*auto or an integer"),
        ({"count": "many"}, "objective.count is 'many'"),
    ],
)
def test_refusals(keys, sentence):
    with pytest.raises(UserError, match=sentence):
        build(typed(ClustersConfig, keys, "objective"), plain_config(12), plain_config(12))


def test_as_a_recipe_section():
    values = {"count": 4, "clusters": [[0, 1], [2]], "calibration": {"debiased": True, "frames": 100}}
    config = typed(ClustersConfig, values, "objective")
    assert (config.count, config.clusters) == (4, [[0, 1], [2]])
    assert config.calibration == CalibrationConfig(debiased=True, frames=100)
    assert typed(ClustersConfig, {"count": "auto"}, "objective").count == "auto"
    with pytest.raises(UserError, match=r"objective.linkage is .ward."):
        typed(ClustersConfig, {"linkage": "ward"}, "objective")
    with pytest.raises(UserError, match=r"objective.calibration.frames"):
        typed(ClustersConfig, {"calibration": {"frames": 1}}, "objective")
