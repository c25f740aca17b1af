"""Both forms of the Gram distance: they agree, in value and gradient, and say which is cheaper."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from distiller.objectives import gram
from distiller.objectives.config import Scaling
from distiller.objectives.gram import fp32_products, gram_distances, gram_features, multiply_adds
from tests.distiller.objectives.outputs import frame_mask_of, random_output, star


def states(seed: int, width: int, frames: int, dtype: torch.dtype, layers: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, frames, width, generator=generator, dtype=dtype) for _ in range(layers)]


def distances(
    teacher: list[Tensor], student: list[Tensor], scaling: str, identity: bool, relative: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """Distances for both lags, and the gradients of a weighted sum of them that no two layers share."""
    frames = student[0].shape[1]
    mask = torch.arange(frames) < torch.tensor([[frames], [frames - 7]])
    leaves = [layer.clone().requires_grad_() for layer in student]
    features = (gram_features(layers, mask, scaling) for layers in (teacher, leaves))
    pairs = gram_distances(*features, [0, 1], scaling == "centred", identity)
    results = [distance / norm if relative else distance for distance, norm in pairs]
    weights = torch.arange(1, 1 + results[0].numel(), dtype=student[0].dtype).view_as(results[0])
    total = (weights * results[0]).sum() + (weights.flip(0) * results[1]).sum()
    return [result.detach() for result in results], list(torch.autograd.grad(total, leaves))


@pytest.fixture
def direct_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many Gram matrices each call of the direct form is about."""
    calls: list[int] = []
    direct = gram._gram_difference

    def counted(student: gram.Frames, teacher: gram.Frames | None) -> tuple[Tensor, Tensor]:
        calls.append(student[0].shape[:-2].numel())
        return direct(student, teacher)

    monkeypatch.setattr(gram, "_gram_difference", counted)
    return calls


@pytest.mark.parametrize("scaling", get_args(Scaling))
@pytest.mark.parametrize("relative", [False, True])
def test_identity_and_direct_form_agree(scaling: str, relative: bool, direct_calls: list[int]) -> None:
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 2e-5)):
        teacher, student = states(0, 7, 90, dtype), states(1, 5, 90, dtype)
        by_identity = distances(teacher, student, scaling, identity=True, relative=relative)
        assert not direct_calls  # else the direct form would be compared with itself
        direct = distances(teacher, student, scaling, identity=False, relative=relative)
        assert direct_calls
        direct_calls.clear()
        for ours, reference in zip(by_identity[0] + by_identity[1], direct[0] + direct[1], strict=True):
            assert float((ours - reference).abs().max()) <= tolerance * float(reference.abs().max())


@pytest.mark.parametrize("scaling", get_args(Scaling))
def test_gradients_of_the_direct_form_are_those_of_the_plain_formula(scaling: str) -> None:
    teacher, student = states(0, 7, 20, torch.float64), states(1, 5, 20, torch.float64)
    ours = distances(teacher, student, scaling, identity=False)
    leaves = [layer.clone().requires_grad_() for layer in student]
    total = torch.zeros((), dtype=torch.float64)
    for layer in (1, 2):
        for utterance, length in enumerate((20, 13)):
            for lag in (0, 1):
                grams = []
                for layers in (teacher, leaves):
                    left, right = layers[layer - lag][utterance, :length], layers[layer][utterance, :length]
                    if scaling == "unit":
                        left, right = (x / x.norm(dim=-1, keepdim=True) for x in (left, right))
                    if scaling == "centred":
                        left, right = (x - x.mean(dim=0) for x in (left, right))
                    matrix = left @ right.T
                    if scaling == "width":
                        matrix = matrix / left.shape[-1]
                    if scaling == "centred":
                        matrix = matrix / matrix.square().mean().sqrt()
                    grams.append(matrix)
                value = (grams[0] - grams[1]).square().mean()
                torch.testing.assert_close(ours[0][lag][layer - 1, utterance], value.detach())
                weight = 1 + 2 * (layer - 1) + utterance if lag == 0 else 1 + 2 * (2 - layer) + utterance
                total = total + weight * value
    for gradient, reference in zip(ours[1], torch.autograd.grad(total, leaves), strict=True):
        torch.testing.assert_close(gradient, reference)


@pytest.mark.parametrize("scaling", get_args(Scaling))
@pytest.mark.parametrize("block_elements", [1, 20 * 4 * 3])  # one row; three of twenty rows
def test_blocks_change_nothing(scaling: str, block_elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = states(0, 7, 20, torch.float64), states(1, 5, 20, torch.float64)
    whole = distances(teacher, student, scaling, identity=False, relative=True)
    monkeypatch.setattr(gram, "BLOCK_ELEMENTS", block_elements)
    blocks = distances(teacher, student, scaling, identity=False, relative=True)
    for ours, reference in zip(blocks[0] + blocks[1], whole[0] + whole[1], strict=True):
        torch.testing.assert_close(ours, reference)


def test_no_block_exceeds_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    product = gram.temporal_gram
    monkeypatch.setattr(
        gram, "temporal_gram", lambda left, right: sizes.append((g := product(left, right)).numel()) or g
    )
    monkeypatch.setattr(gram, "BLOCK_ELEMENTS", 300)
    distances(states(0, 7, 20, torch.float64), states(1, 5, 20, torch.float64), "centred", identity=False)
    assert sizes
    assert max(sizes) <= 300


@pytest.mark.parametrize("scaling", ["none", "centred"])
def test_nearly_equal_grams_fall_back_to_the_direct_form(
    scaling: str, direct_calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = states(0, 6, 90, torch.float32)
    student = [layer + 1e-3 * noise for layer, noise in zip(teacher, states(1, 6, 90, torch.float32), strict=True)]
    student[2] = states(2, 6, 90, torch.float32)[2]  # layer 2 is far from the teacher's and keeps the identity
    ours = distances(teacher, student, scaling, identity=True)[0]
    assert set(direct_calls) == {2}  # of four Gram matrices per lag
    exact = distances([x.double() for x in teacher], [x.double() for x in student], scaling, identity=False)[0]
    assert float((ours[0] / exact[0] - 1).abs().max()) < 1e-4
    assert float((ours[1] / exact[1] - 1).abs().max()) < 1e-4
    monkeypatch.setattr(gram, "CANCELLATION", -1.0)  # without the fallback the value is wrong
    cancelled = distances(teacher, student, scaling, identity=True)[0]
    assert float((cancelled[0] / exact[0] - 1).abs().max()) > 1e-2


@pytest.mark.parametrize("scaling", ["none", "centred"])
def test_gradients_of_both_forms_agree_across_the_fallback(scaling: str) -> None:
    teacher = states(0, 6, 90, torch.float64)
    student = [layer + 1e-3 * noise for layer, noise in zip(teacher, states(1, 6, 90, torch.float64), strict=True)]
    student[2] = states(2, 6, 90, torch.float64)[2]
    by_identity, direct = (distances(teacher, student, scaling, identity) for identity in (True, False))
    for ours, reference in zip(by_identity[1], direct[1], strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-8, atol=1e-10)


def test_counted_cost_breaks_even_where_methods_says() -> None:
    def identity_is_cheaper(frames: int, lags: list[int], gradient: bool = False) -> bool:
        direct, identity = multiply_adds(frames, 768, 432, lags, gradient)
        return identity < direct

    assert not identity_is_cheaper(923, [0])
    assert identity_is_cheaper(924, [0])
    assert not identity_is_cheaper(461, [0, 1])
    assert identity_is_cheaper(462, [0, 1])
    # with the student's gradients: 2 d_S^2 + d_T d_S more per frame, against d_S and 2 d_S more per frame pair
    assert multiply_adds(10, 3, 2, [0, 1], True) == (100 * (5 + 2 + 5 + 4), 10 * (9 + 4 + 6 + 8 + 6))


def test_backward_products_of_the_identity_are_in_fp32_products_too(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = torch.stack(states(0, 3, 40, torch.float32)), torch.stack(states(1, 3, 40, torch.float32))
    total = sum(distance.sum() for distance, _ in gram_distances(teacher, student.requires_grad_(), [0, 1]))
    entered: list[str] = []
    monkeypatch.setattr(gram, "fp32_products", lambda device: entered.append(device) or fp32_products(device))
    torch.autograd.grad(total, student)
    assert entered == ["cpu"] * 2  # C_S and C_TS


@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_products_have_the_precision_of_the_recipe_on_cuda_alone(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients, which the forward pass computes; the flags are as they were afterwards."""
    flags = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    before, seen = [flag.fp32_precision for flag in flags], []
    product = gram.temporal_gram
    monkeypatch.setattr(
        gram, "temporal_gram", lambda *both: seen.append([flag.fp32_precision for flag in flags]) or product(*both)
    )
    mask = frame_mask_of(20, 13)
    teacher, student = (random_output(seed, 6, 2, mask, gradient=True) for seed in (0, 1))
    terms = star(gram_precision=precision, identity="never")(teacher, student, mask)
    assert seen
    assert all(inside == [precision, "ieee"] for inside in seen)
    assert [flag.fp32_precision for flag in flags] == before
    sum(term.total for term in terms).backward()
    assert [flag.fp32_precision for flag in flags] == before


def test_rounding_to_tf32_hardly_changes_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32's inputs have ten bits behind the point; products of rounded frames stand in for a GPU's."""

    def rounded(values: Tensor) -> Tensor:
        return values.view(torch.int32).add(1 << 12).bitwise_and_(-1 << 13).view(torch.float32)

    teacher, student = states(0, 96, 120, torch.float32), states(1, 48, 120, torch.float32)
    exact = distances(teacher, student, "none", identity=False)
    monkeypatch.setattr(gram, "temporal_gram", lambda left, right: rounded(left) @ rounded(right).mT)
    reduced = distances(teacher, student, "none", identity=False)
    error = torch.cat([(a - b).flatten() for a, b in zip(reduced[1], exact[1], strict=True)]).norm()
    assert 1e-6 < float(error / torch.cat([gradient.flatten() for gradient in exact[1]]).norm()) < 3e-4


def test_fp32_products_turn_autocast_and_reduced_products_off_and_restore_them() -> None:
    before = torch.get_float32_matmul_precision()
    matrix = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with fp32_products("cpu"):
                inside = matrix @ matrix
                assert torch.backends.cuda.matmul.fp32_precision == "ieee"
            assert (matrix @ matrix).dtype == torch.bfloat16
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)
    exact = (matrix.double() @ matrix.double()).float()
    torch.testing.assert_close(inside, exact, rtol=1e-5, atol=1e-5)
