"""The STaR objective: what must not matter to it, and what its configuration chooses."""

import pytest
import torch
from torch import Tensor

from distiller.objectives import gram
from distiller.objectives.config import StarConfig
from distiller.objectives.registry import build
from distiller.objectives.star import attention_loss, gram_losses
from tests.distiller.objectives.outputs import (
    ALL_TERMS,
    LAYERS,
    STUDENT_WIDTH,
    TEACHER_WIDTH,
    encoder_config,
    frame_mask_of,
    random_output,
    random_states,
    star,
)
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError

# What must not matter: padding, batching, precision settings


@pytest.mark.parametrize("scaling", ["none", "width", "unit", "centred"])
@pytest.mark.parametrize("identity", ["auto", "never"])
def test_nan_in_the_padding_changes_nothing(scaling: str, identity: str) -> None:
    mask = frame_mask_of(60, 41)  # longer than the widths: the identity is taken
    objective = star(**ALL_TERMS, scaling=scaling, identity=identity, relative=True)

    def run(fill: float | None) -> tuple[list[Tensor], list[Tensor]]:
        teacher, student = random_output(0, 8, 4, mask), random_output(5, 6, 2, mask, gradient=True)
        if fill is not None:
            with torch.no_grad():
                for output in (teacher, student):
                    for layer in output.hidden_states:
                        layer[~mask] = fill
                    for weights in output.attention_maps or []:
                        assert weights is not None
                        weights.transpose(1, 2)[~mask] = fill
                        weights.permute(0, 3, 1, 2)[~mask] = fill
        totals = [term.total for term in objective(teacher, student, mask)]
        leaves = [*student.hidden_states, *(weights for weights in student.attention_maps or [] if weights is not None)]
        return totals, list(torch.autograd.grad(torch.stack(totals).sum(), leaves))

    totals, gradients = run(None)
    nan_totals, nan_gradients = run(float("nan"))
    assert len(totals) == 4
    assert all(torch.equal(a, b) for a, b in zip(totals, nan_totals, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(gradients, nan_gradients, strict=True))
    for gradient in nan_gradients[: LAYERS + 1]:
        assert float(gradient[~mask].abs().max()) == 0.0
        assert float(gradient[mask].abs().max()) > 0.0


@pytest.mark.parametrize("scaling", ["none", "centred"])
def test_micro_batches_of_unequal_sizes_give_one_batchs_gradients(scaling: str) -> None:
    """The loop's reduction: totals over counts of the whole window."""
    config = encoder_config(heads=2, width=8)
    torch.manual_seed(0)
    teacher, student = SpeechEncoder(encoder_config(heads=4, width=16)).eval(), SpeechEncoder(config).eval()
    objective = build(StarConfig(**ALL_TERMS, scaling=scaling), teacher.config, config)
    lengths = torch.tensor([900, 400, 700])
    waveforms = torch.randn(3, 900)

    def gradients(parts: list[slice]) -> Tensor:
        student.zero_grad()
        counts = {"utterance": 3, "frame": int(config.frame_count(lengths).sum())}
        for part in parts:
            clips = waveforms[part, : int(lengths[part].max())]
            with torch.no_grad():
                targets = teacher(clips, lengths[part], attention_maps=True)
            outputs = student(clips, lengths[part], attention_maps=True)
            mask = torch.arange(outputs.projected.shape[1]) < outputs.frame_lengths[:, None]
            terms = objective(targets, outputs, mask)
            sum(term.weight * term.total / counts[term.unit] for term in terms).backward()
        return torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])

    whole, parts = gradients([slice(0, 3)]), gradients([slice(0, 1), slice(1, 3)])
    assert float((whole - parts).abs().max()) < 1e-6 * float(whole.abs().max())


def test_half_precision_and_autocast_leave_the_losses_in_fp32() -> None:
    mask = frame_mask_of(9, 5)
    teacher, student = random_output(0, 8, 4, mask), random_output(1, 6, 2, mask)
    for output in (teacher, student):
        output.hidden_states = [layer.bfloat16() for layer in output.hidden_states]
        output.attention_maps = [
            None if weights is None else weights.bfloat16() for weights in output.attention_maps or []
        ]
    objective = star(**ALL_TERMS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        totals = [term.total for term in objective(teacher, student, mask)]
    for output in (teacher, student):
        output.hidden_states = [layer.double() for layer in output.hidden_states]
        output.attention_maps = [
            None if weights is None else weights.double() for weights in output.attention_maps or []
        ]
    exact = [term.total for term in objective(teacher, student, mask)]
    assert all(total.dtype == torch.float32 for total in totals)
    torch.testing.assert_close(totals, [total.float() for total in exact], rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("frames", [5, 60])  # direct form; identity
def test_no_gradient_reaches_the_teacher(frames: int) -> None:
    mask = frame_mask_of(frames, 4)
    teacher, student = random_output(0, 8, 4, mask, gradient=True), random_output(1, 6, 2, mask, gradient=True)
    sum(term.total for term in star(**ALL_TERMS)(teacher, student, mask)).backward()
    assert all(
        leaf.grad is None for leaf in (*teacher.hidden_states, *(teacher.attention_maps or [])) if leaf is not None
    )
    for leaf in (*student.hidden_states, *(student.attention_maps or [])):
        assert leaf is not None
        assert leaf.grad is not None
        assert float(leaf.grad.abs().max()) > 0.0


def test_constant_or_single_frames_keep_the_centred_loss_finite() -> None:
    mask = frame_mask_of(4, 1)
    teacher = random_states(0, TEACHER_WIDTH, mask)
    student = [torch.ones(2, 4, STUDENT_WIDTH, dtype=torch.float64, requires_grad=True) for _ in teacher]
    losses = gram_losses(teacher, student, mask, scaling="centred", relative=True)
    sum(loss.sum() for loss in losses.values()).backward()  # type: ignore[union-attr]
    assert losses["layer_wise"].tolist() == pytest.approx([1.0, 0.0])
    assert all(bool(layer.grad.isfinite().all()) for layer in student if layer.grad is not None)


# Choices


def test_only_weighted_terms_are_computed() -> None:
    mask = frame_mask_of(5, 4)
    outputs = random_output(0, 8, 4, mask), random_output(1, 6, 2, mask)
    assert [term.name for term in star()(*outputs, mask)] == ["layer_wise", "intra_layer"]
    assert {term.unit for term in star()(*outputs, mask)} == {"utterance"}
    assert [term.name for term in star(layer_wise=0.0, intra_layer=0.5)(*outputs, mask)] == ["intra_layer"]
    assert not star().needs_attention_maps
    assert star(last_attention=0.1).needs_attention_maps


def test_identity_never_keeps_to_the_direct_form(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = frame_mask_of(60)
    outputs = random_output(0, 8, 4, mask), random_output(1, 6, 2, mask)
    with monkeypatch.context() as patched:
        patched.setattr(gram, "_identity_distances", None)
        direct = star(identity="never")(*outputs, mask)
        with pytest.raises(TypeError):
            star()(*outputs, mask)
    for ours, reference in zip(star()(*outputs, mask), direct, strict=True):
        torch.testing.assert_close(ours.total, reference.total)


def test_the_feature_projection_takes_the_place_of_f0() -> None:
    mask = frame_mask_of(5, 4)
    teacher, student = random_output(0, 8, 4, mask), random_output(1, 6, 2, mask)
    totals = {term.name: term.total for term in star(layer_zero="feature_projection")(teacher, student, mask)}
    expected = gram_losses(
        [teacher.projected, *teacher.hidden_states[1:]], [student.projected, *student.hidden_states[1:]], mask
    )
    plain = {term.name: term.total for term in star()(teacher, student, mask)}
    torch.testing.assert_close(totals, {name: loss.sum() for name, loss in expected.items()})
    torch.testing.assert_close(totals["layer_wise"], plain["layer_wise"])
    assert abs(float(totals["intra_layer"] - plain["intra_layer"])) > 1e-3


def test_the_map_selects_the_teachers_states_and_attention_maps() -> None:
    mask = frame_mask_of(5, 4)
    teacher, student = random_output(0, 8, 4, mask), random_output(1, 6, 2, mask)
    assert teacher.attention_maps is not None
    assert student.attention_maps is not None
    student.hidden_states = student.hidden_states[:3]
    student.attention_maps = student.attention_maps[:2]
    config = StarConfig(last_attention=1.0, layer_map=[1, 3])
    objective = build(config, encoder_config(layers=3), encoder_config(layers=2))
    terms = {term.name: term.total for term in objective(teacher, student, mask)}
    expected = gram_losses([teacher.hidden_states[i] for i in (0, 1, 3)], student.hidden_states, mask)
    torch.testing.assert_close(terms["intra_layer"], expected["intra_layer"].sum())
    teacher_map, student_map = teacher.attention_maps[2], student.attention_maps[1]
    assert teacher_map is not None
    assert student_map is not None
    torch.testing.assert_close(terms["last_attention"], attention_loss(teacher_map, student_map, mask).sum())


def test_layers_that_lost_their_attention_are_left_out() -> None:
    mask = frame_mask_of(5, 4)
    teacher, student = random_output(0, 8, 4, mask), random_output(1, 6, 2, mask)
    assert teacher.attention_maps is not None
    assert student.attention_maps is not None
    expected = [(teacher.attention_maps[i], student.attention_maps[i]) for i in (0, 2)]
    student.attention_maps[1] = None
    pruned = EncoderConfig.from_dict(encoder_config().to_dict() | {"attention_heads": ((0, 1), (), (0, 1))})
    config = StarConfig(average_attention=1.0, layer_wise=0.0)
    term = build(config, encoder_config(), pruned)(teacher, student, mask)[0]
    losses = [attention_loss(t, s, mask).sum() for t, s in expected if t is not None and s is not None]
    torch.testing.assert_close(term.total, losses[0] + losses[1])
    bare = EncoderConfig.from_dict(encoder_config().to_dict() | {"attention_heads": ((0, 1), (0,), None)})
    with pytest.raises(UserError, match=r"objective\.last_attention is 1\.0.*must be 0"):
        build(StarConfig(last_attention=1.0), encoder_config(), bare)
