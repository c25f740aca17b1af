"""STaR's losses: numbers by hand, and the algebra that a wrong loss fails."""

import pytest
import torch
from torch import Tensor

from distiller.objectives.star import attention_loss, gram_losses
from tests.distiller.objectives.outputs import (
    LAYERS,
    STUDENT_WIDTH,
    TEACHER_WIDTH,
    frame_mask_of,
    isometry,
    random_output,
    random_states,
    star,
)

# Numbers by hand


def test_gram_losses_by_hand() -> None:
    teacher = [torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[3.0], [4.0]]])]
    student = [torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])]
    losses = gram_losses(teacher, student, frame_mask_of(2))
    # G_T - G_S = [[9, 12], [12, 16]] - [[1, 1], [1, 1]];  Gi_T - Gi_S = [[3, 4], [6, 8]] - [[1, 1], [0, 0]]
    assert losses["layer_wise"].tolist() == pytest.approx([(64 + 121 + 121 + 225) / 4])
    assert losses["intra_layer"].tolist() == pytest.approx([(4 + 9 + 36 + 64) / 4])


def test_layers_are_summed_and_utterances_kept_apart() -> None:
    teacher = [torch.full((2, 3, 1), value) for value in (1.0, 2.0, 3.0)]
    student = [torch.zeros(2, 3, 4)] * 3
    losses = gram_losses(teacher, student, frame_mask_of(1, 3))
    assert losses["layer_wise"].tolist() == pytest.approx([4.0**2 + 9.0**2] * 2)
    assert losses["intra_layer"].tolist() == pytest.approx([2.0**2 + 6.0**2] * 2)


def test_scalings_by_hand() -> None:
    teacher = [torch.tensor([[[3.0, 4.0], [0.0, 2.0]]])] * 2
    student = [torch.tensor([[[0.0, 1.0], [2.0, 0.0]]])] * 2
    mask = frame_mask_of(2)

    def layer_wise(scaling: str, relative: bool = False) -> float:
        return float(gram_losses(teacher, student, mask, ["layer_wise"], scaling, relative)["layer_wise"])

    # G_T = [[25, 8], [8, 4]], G_S = [[1, 0], [0, 4]]
    assert layer_wise("none") == pytest.approx((24**2 + 2 * 8**2) / 4)
    assert layer_wise("none", relative=True) == pytest.approx((24**2 + 2 * 8**2) / (25**2 + 2 * 8**2 + 4**2))
    assert layer_wise("width") == pytest.approx((24**2 + 2 * 8**2) / 4 / 2**2)
    assert layer_wise("unit") == pytest.approx(2 * 0.8**2 / 4)  # cosines 0.8 and 0
    assert layer_wise("centred") == pytest.approx(
        0.0, abs=1e-6
    )  # two centred frames are x and -x: G = |x|^2 [[1,-1],[-1,1]]


def test_centred_intra_layer_is_the_distance_of_matrices_of_unit_frobenius_norm() -> None:
    mask = frame_mask_of(5)
    teacher, student = random_states(0, 4, mask, 1), random_states(1, 3, mask, 1)

    def unit_gram(states: list[Tensor]) -> Tensor:
        left, right = (layer[0] - layer[0].mean(dim=0) for layer in states)
        gram = left @ right.T
        return gram / gram.norm()

    expected = (unit_gram(teacher) - unit_gram(student)).square().sum()
    for relative in (False, True):  # the teacher's norm is 1 already
        losses = gram_losses(teacher, student, mask, ["intra_layer"], "centred", relative)
        torch.testing.assert_close(losses["intra_layer"], expected[None])


def test_attention_loss_by_hand_with_different_head_counts() -> None:
    teacher = torch.tensor([[[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], [[0.9, 0.1, 0.0], [0.0, 1.0, 0.0]]])[None]
    student = torch.tensor([[[0.5, 0.5, 0.0], [0.75, 0.25, 0.0]]])[None]
    teacher, student = (torch.nn.functional.pad(a, (0, 0, 0, 1), value=1 / 3) for a in (teacher, student))
    loss = attention_loss(teacher, student, torch.tensor([[True, True, False]]))
    # means over heads: (0.7, 0.3) against (0.5, 0.5), and (0.5, 0.5) against (0.75, 0.25)
    expected = torch.tensor([0.7, 0.3, 0.5, 0.5]) * torch.tensor([0.7 / 0.5, 0.3 / 0.5, 0.5 / 0.75, 0.5 / 0.25]).log()
    torch.testing.assert_close(loss, expected.sum()[None])


def test_average_attention_sums_layers_and_last_attention_takes_one() -> None:
    mask = frame_mask_of(4, 3)
    teacher, student = random_output(0, 8, 4, mask), random_output(1, 8, 2, mask)
    assert teacher.attention_maps is not None
    assert student.attention_maps is not None
    each = [
        attention_loss(t, s, mask).sum()
        for t, s in zip(teacher.attention_maps, student.attention_maps, strict=True)
        if t is not None and s is not None
    ]
    objective = star(average_attention=2.0, last_attention=1.0, layer_wise=0.0, intra_layer=0.0)
    average, last = objective(teacher, student, mask)
    assert (average.name, average.unit, average.weight) == ("average_attention", "frame", 2.0)
    assert (last.name, last.unit, last.weight) == ("last_attention", "frame", 1.0)
    torch.testing.assert_close(average.total, sum(each[1:], each[0]))
    torch.testing.assert_close(last.total, each[-1])


# Algebra


def test_one_isometry_makes_both_gram_losses_zero_and_one_per_layer_only_the_first() -> None:
    mask = frame_mask_of(7, 4)
    student = random_states(0, STUDENT_WIDTH, mask)
    for scaling in ("none", "unit", "centred"):
        shared = gram_losses([layer @ isometry(1) for layer in student], student, mask, scaling=scaling)
        assert max(float(loss.max()) for loss in shared.values()) < 1e-20
        own = gram_losses([layer @ isometry(i) for i, layer in enumerate(student)], student, mask, scaling=scaling)
        assert float(own["layer_wise"].max()) < 1e-20
        assert float(own["intra_layer"].min()) > 0.1


def test_the_zeroth_state_moves_only_the_first_intra_layer_term() -> None:
    mask = frame_mask_of(6, 5)
    teacher, student = random_states(0, TEACHER_WIDTH, mask), random_states(1, STUDENT_WIDTH, mask)
    moved = [student[0] + 1.0, *student[1:]]
    before, after = (gram_losses(teacher, states, mask) for states in (student, moved))
    assert torch.equal(before["layer_wise"], after["layer_wise"])
    first_before, first_after = (gram_losses(teacher[:2], states[:2], mask) for states in (student, moved))
    torch.testing.assert_close(
        after["intra_layer"] - before["intra_layer"], first_after["intra_layer"] - first_before["intra_layer"]
    )
    assert float((first_after["intra_layer"] - first_before["intra_layer"]).abs().min()) > 0.1


def test_permuting_the_students_frames_moves_both() -> None:
    mask = frame_mask_of(6)
    student = random_states(0, STUDENT_WIDTH, mask)
    teacher = [layer @ isometry(1) for layer in student]
    permuted = [layer[:, [1, 0, 2, 5, 4, 3]] for layer in student]
    for scaling in ("none", "width", "unit", "centred"):
        losses = gram_losses(teacher, permuted, mask, scaling=scaling)
        assert float(losses["layer_wise"]) > 1e-2
        assert float(losses["intra_layer"]) > 1e-2


@pytest.mark.parametrize(
    ("scaling", "invariant_to"),
    [("none", set()), ("width", {"wider"}), ("unit", {"wider", "louder"}), ("centred", {"wider", "affine"})],
)
@pytest.mark.parametrize("relative", [False, True])
def test_invariances_of_the_scalings(scaling: str, invariant_to: set[str], relative: bool) -> None:
    mask = frame_mask_of(7, 5)
    teacher, student = random_states(0, TEACHER_WIDTH, mask), random_states(1, STUDENT_WIDTH, mask)
    loudness = torch.linspace(0.5, 2.0, 7, dtype=torch.float64)[:, None]
    changed = {
        "wider": [torch.cat([layer] * 3, dim=-1) for layer in student],  # G three times as large
        "louder": [layer * loudness for layer in student],  # each frame by its own factor
        "affine": [3.0 * layer + 2.0 for layer in student],
    }
    reference = gram_losses(teacher, student, mask, scaling=scaling, relative=relative)
    for change, states in changed.items():
        losses = gram_losses(teacher, states, mask, scaling=scaling, relative=relative)
        for name, loss in losses.items():
            difference = float((loss / reference[name] - 1.0).abs().min())
            assert difference < 1e-9 if change in invariant_to else difference > 1e-3, (change, name)


@pytest.mark.parametrize("scaling", ["none", "width", "unit", "centred"])
def test_relative_divides_each_layer_by_the_teachers_gram_norm_and_is_the_mean_over_layers(scaling: str) -> None:
    mask = frame_mask_of(7, 5)
    teacher = random_states(0, TEACHER_WIDTH, mask)
    nothing = [torch.zeros(*mask.shape, STUDENT_WIDTH, dtype=torch.float64)] * (LAYERS + 1)
    losses = gram_losses(teacher, nothing, mask, scaling=scaling, relative=True)
    for loss in losses.values():  # |G_T - 0|^2 / |G_T|^2 in every layer
        torch.testing.assert_close(loss, torch.ones(2, dtype=torch.float64))
