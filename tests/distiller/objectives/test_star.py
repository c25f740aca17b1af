"""The STaR objective: numbers by hand, and the algebra that a wrong loss fails."""

import pytest
import torch
from torch import Tensor

from distiller.objectives import build, gram
from distiller.objectives.star import Star, StarConfig, attention_loss, gram_losses
from upstream.config import EncoderConfig
from upstream.encoder import EncoderOutput, SpeechEncoder
from upstream.errors import UserError

LAYERS, TEACHER_WIDTH, STUDENT_WIDTH = 3, 10, 6
ALL_TERMS = {"average_attention": 1.0, "last_attention": 1.0, "layer_wise": 1.0, "intra_layer": 1.0}


def encoder_config(layers: int = LAYERS, heads: int = 2, width: int = 8) -> EncoderConfig:
    return EncoderConfig(
        embed_dim=width,
        num_heads=heads,
        attention_heads=(tuple(range(heads)),) * layers,
        ffn_dims=(4,) * layers,
        head_dim=4,
        conv_layers=((4, 10, 5), (width, 8, 4)),
        positional_kernel=4,
        positional_groups=2,
    )


def frame_mask_of(*lengths: int) -> Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def random_states(seed: int, width: int, mask: Tensor, layers: int = LAYERS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*mask.shape, width, generator=generator, dtype=torch.float64) for _ in range(layers + 1)]


def random_output(seed: int, width: int, heads: int, mask: Tensor, gradient: bool = False) -> EncoderOutput:
    """An encoder's output in fp64, with attention that ignores padded keys; its tensors are leaves."""
    states = random_states(seed, width, mask)
    generator = torch.Generator().manual_seed(seed + 1)
    maps = []
    for _ in range(LAYERS):
        scores = torch.randn(len(mask), heads, mask.shape[1], mask.shape[1], generator=generator, dtype=torch.float64)
        maps.append(scores.masked_fill(~mask[:, None, None], -torch.inf).softmax(dim=-1))
    leaves = [tensor.requires_grad_(gradient) for tensor in (*states, *maps)]
    return EncoderOutput(
        projected=torch.randn(*mask.shape, width, generator=generator, dtype=torch.float64),
        hidden_states=leaves[: LAYERS + 1],
        last_hidden_state=leaves[LAYERS],
        frame_lengths=mask.sum(dim=1),
        attention_maps=list(leaves[LAYERS + 1 :]),
    )


def star(**values: object) -> Star:
    objective = build(StarConfig(**values), encoder_config(), encoder_config())  # type: ignore[arg-type]
    assert isinstance(objective, Star)
    return objective


def isometry(seed: int) -> Tensor:
    """(student width, teacher width) with orthonormal rows."""
    matrix = torch.randn(
        TEACHER_WIDTH, STUDENT_WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return torch.linalg.qr(matrix)[0].T


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


def test_projected_takes_the_place_of_the_zeroth_state() -> None:
    mask = frame_mask_of(5, 4)
    teacher, student = random_output(0, 8, 4, mask), random_output(1, 6, 2, mask)
    totals = {term.name: term.total for term in star(zeroth="projected")(teacher, student, mask)}
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
