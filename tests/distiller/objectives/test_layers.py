"""DPHuBERT's and DistilHuBERT's losses: hand-computed numbers, heads, layer choice, padding."""

import math

import pytest
import torch
from torch import nn

from distiller.common.strict import typed
from distiller.objectives.config import LayersConfig, PredictionsConfig
from distiller.objectives.layer_map import spread_layers, student_layers
from distiller.objectives.layers import projection
from distiller.objectives.registry import build
from tests.distiller.objectives.outputs import plain_config
from upstream.encoder import EncoderOutput
from upstream.errors import UserError


def output(depth: int, width: int = 4, frames: int = 5, batch: int = 2, seed: int = 0) -> EncoderOutput:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(depth + 2, batch, frames, width, generator=generator)
    return EncoderOutput(states[0], list(states[1:]), states[-1], torch.full((batch,), frames))


def loss(terms, frames: int) -> torch.Tensor:
    assert {term.unit for term in terms} == {"frame"}
    return sum(term.weight * term.total / frames for term in terms)


def every_frame(out: EncoderOutput) -> torch.Tensor:
    return torch.ones(out.projected.shape[:2], dtype=torch.bool)


def test_dphubert_by_hand():
    config = plain_config(1, width=2)
    objective = build(LayersConfig(layers=[0, 1]), config, config)
    teacher_p, teacher_1 = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[0.0, 2.0]]])
    student_p, student_1 = torch.tensor([[[4.0, 3.0]]]), torch.tensor([[[1.0, 0.0]]])
    unused = torch.full((1, 1, 2), 99.0)
    terms = objective(
        EncoderOutput(teacher_p, [unused, teacher_1], teacher_1, torch.tensor([1])),
        EncoderOutput(student_p, [unused, student_1], student_1, torch.tensor([1])),
        torch.ones(1, 1, dtype=torch.bool),
    )
    # layer 0: L1 (1 + 1) / 2 = 1, cos 24 / 25; layer 1: L1 (1 + 2) / 2 = 1.5, cos 0
    assert {term.name: term.total.item() for term in terms} == pytest.approx({"l1": 1.25, "cosine": -0.48})


def test_dphubert_layers_and_projections():
    config = plain_config(12)
    objective = build(LayersConfig(), config, config)
    assert [match.teacher for match in objective.matches] == [(0,), (4,), (8,), (12,)]
    assert [match.student for match in objective.matches] == [(0,), (4,), (8,), (12,)]
    assert [match.projection for match in objective.matches] == [0, 1, 1, 1]
    assert len(objective.projections) == 2
    six = build(LayersConfig(), plain_config(6), plain_config(6))
    assert [match.teacher for match in six.matches] == [(0,), (2,), (4,), (6,)]
    without_zero, out = build(LayersConfig(layers=[4, 8]), config, config), output(12)
    assert len(without_zero.projections) == 1
    assert loss(without_zero(out, out, every_frame(out)), 10).item() == pytest.approx(-1, abs=1e-6)


def test_no_gradient_reaches_the_teacher():
    config, teacher, student = plain_config(12), output(12), output(12, seed=1)
    teacher.hidden_states[4].requires_grad_(True)
    student.hidden_states[4].requires_grad_(True)
    loss(build(LayersConfig(), config, config)(teacher, student, every_frame(teacher)), 10).backward()
    assert teacher.hidden_states[4].grad is None
    assert student.hidden_states[4].grad is not None


def test_identical_encoders_lose_minus_one_at_the_start():
    config, out = plain_config(12), output(12)
    objective = build(LayersConfig(), config, config)
    assert loss(objective(out, out, every_frame(out)), 10).item() == pytest.approx(-1, abs=1e-6)


def test_layer_zero_is_p_or_the_first_layers_input():
    config, teacher, student = plain_config(12), output(12), output(12, seed=1)
    mask = every_frame(teacher)
    for layer_zero, field in (
        ("feature_projection", teacher.projected),
        ("transformer_input", teacher.hidden_states[0]),
    ):
        objective = build(LayersConfig(layers=[0], layer_zero=layer_zero), config, config)
        before = loss(objective(teacher, student, mask), 10).item()
        changed = field + 1.0
        if layer_zero == "feature_projection":
            moved = EncoderOutput(changed, teacher.hidden_states, teacher.last_hidden_state, teacher.frame_lengths)
            still = EncoderOutput(teacher.projected, [changed, *teacher.hidden_states[1:]], changed, changed)
        else:
            moved = EncoderOutput(teacher.projected, [changed, *teacher.hidden_states[1:]], changed, changed)
            still = EncoderOutput(changed, teacher.hidden_states, teacher.last_hidden_state, teacher.frame_lengths)
        assert loss(objective(moved, student, mask), 10).item() != pytest.approx(before, abs=1e-3)
        assert loss(objective(still, student, mask), 10).item() == before


def test_distilhubert_by_hand():
    objective = build(PredictionsConfig(layers=[1]), plain_config(1, width=2), plain_config(1, width=2))
    objective.projections[0] = nn.Identity()
    teacher, student = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[4.0, 3.0]]])
    terms = objective(
        EncoderOutput(teacher, [teacher, teacher], teacher, torch.tensor([1])),
        EncoderOutput(student, [student * 9, student * 9], student, torch.tensor([1])),
        torch.ones(1, 1, dtype=torch.bool),
    )
    expected = {"l1": 1.0, "cosine": math.log(1 + math.exp(-0.96))}
    assert {term.name: term.total.item() for term in terms} == pytest.approx(expected)


def test_distilhubert_predicts_layers_4_8_12_from_the_last_state_of_a_shallow_student():
    objective = build(PredictionsConfig(), plain_config(12), plain_config(2, width=6))
    assert [match.teacher for match in objective.matches] == [(4,), (8,), (12,)]
    assert len(objective.projections) == 3
    teacher, student = output(12), output(2, width=6)
    student.last_hidden_state.requires_grad_(True)
    loss(objective(teacher, student, every_frame(teacher)), 10).backward()
    assert student.last_hidden_state.grad is not None
    shapes = [tuple(parameter.shape) for parameter in objective.projections[0].parameters()]
    assert shapes == [(4, 6), (4,), (4, 4), (4,)]


@pytest.mark.parametrize("config", [LayersConfig(), PredictionsConfig()])
def test_padding_reaches_neither_values_nor_gradients(config):
    torch.manual_seed(0)
    objective = build(config, plain_config(12), plain_config(12))
    for parameter in objective.projections.parameters():
        nn.init.normal_(parameter)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    results = []
    for fill in (0.0, float("nan")):
        objective.zero_grad()
        teacher, student = output(12), output(12, seed=1)
        student.frame_lengths = mask.sum(dim=1)
        for out in (teacher, student):
            for state in (out.projected, *out.hidden_states):
                state[~mask] = fill
        leaves = [student.projected, *student.hidden_states]
        for leaf in leaves:
            leaf.requires_grad_(True)
        value = loss(objective(teacher, student, mask), 8)
        value.backward()
        gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
        results.append([value, *gradients, *(p.grad for p in objective.parameters())])
        assert all(bool((gradient[~mask] == 0).all()) for gradient in gradients)
    assert all(torch.equal(clean, dirty) for clean, dirty in zip(*results, strict=True))
    assert all(bool(value.isfinite().all()) for value in results[1])


def test_totals_are_sums_so_that_a_batch_may_be_split():
    config, teacher, student = plain_config(12), output(12), output(12, seed=1)
    objective = build(LayersConfig(), config, config)
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    student.frame_lengths = mask.sum(dim=1)
    whole = objective(teacher, student, mask)

    def part(out: EncoderOutput, row: int) -> EncoderOutput:
        take = slice(row, row + 1)
        states = [state[take] for state in out.hidden_states]
        return EncoderOutput(out.projected[take], states, out.last_hidden_state[take], out.frame_lengths[take])

    parts = [objective(part(teacher, row), part(student, row), mask[row : row + 1]) for row in (0, 1)]
    for index, term in enumerate(whole):
        torch.testing.assert_close(term.total, parts[0][index].total + parts[1][index].total)


def test_projection_starts_as_the_identity_or_xavier():
    square, narrow = projection(4, 4), projection(3, 4)
    torch.testing.assert_close(square.weight.data, torch.eye(4))
    assert square.bias.abs().max() == narrow.bias.abs().max() == 0
    assert 0 < narrow.weight.abs().max() <= math.sqrt(6 / 7)


def test_layers_between_teachers_and_students_of_other_depths():
    assert spread_layers(12, 3) == [4, 8, 12]
    assert spread_layers(6, 3) == [2, 4, 6]
    assert spread_layers(2, 3) == [1, 2]
    assert student_layers([0, 4, 5], 12, 12, None) == (0, 4, 5)
    assert student_layers([1], 12, 3, None) == (1,)
    assert student_layers([7, 8, 12], 24, 12, None) == (4, 6)
    assert student_layers([3, 4], 4, 2, [2, 4]) == (2,)
    assert student_layers([0, 2], 4, 2, [2, 4]) == (0, 1)
    with pytest.raises(UserError, match=r"objective.layer_map is \[2, 4\].*teacher's layers \[1, 3\]"):
        student_layers([1, 3], 4, 2, [2, 4])


@pytest.mark.parametrize(
    ("config", "values", "sentence"),
    [
        (LayersConfig, {"layers": [4, 13]}, r"objective.layers is \[4, 13\], but it must be layers .* from 0 to 12"),
        (LayersConfig, {"layers": []}, "objective.layers is .*at least one layer"),
        (LayersConfig, {"l1_weight": -1.0}, "objective.l1_weight is -1.0"),
        (LayersConfig, {"l1_weight": 0.0, "cosine_weight": 0.0}, "objective.l1_weight is 0"),
        (PredictionsConfig, {"layer_map": [1]}, "objective.layer_map is .*reads the last layer"),
    ],
)
def test_refusals(config, values, sentence):
    with pytest.raises(UserError, match=sentence):
        build(typed(config, values, "objective"), plain_config(12), plain_config(12))
