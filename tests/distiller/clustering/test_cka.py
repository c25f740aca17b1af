"""Streaming CKA against the direct formula, its invariances, its bounds on memory, and its refusals."""

import numpy as np
import pytest
import torch

from distiller.clustering.cka import PairMoments, stream_cka
from upstream.errors import UserError


def direct_cka(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    return ((y.T @ x) ** 2).sum() / np.sqrt(((x.T @ x) ** 2).sum() * ((y.T @ y) ** 2).sum())


def direct_debiased_cka(x: np.ndarray, y: np.ndarray) -> float:
    def hsic(k, m):
        n = len(k)
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        return (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k @ m).sum() / (n - 2)

    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def padded(layers: list[np.ndarray], lengths: list[int], fill: float = 0.0):
    """Split (frame, channel) layers into one padded batch of utterances of the given lengths."""
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    states = []
    for layer in layers:
        state = torch.full((*mask.shape, layer.shape[1]), fill, dtype=torch.float64)
        state[mask] = torch.from_numpy(layer)
        states.append(state)
    return states, mask


@pytest.fixture
def layers() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    base = generator.normal(size=(240, 6))
    # another width, and a mean far from zero
    second = base @ generator.normal(size=(6, 9)) + generator.normal(size=(240, 9)) + 50.0
    return [base + 3.0, second, generator.normal(size=(240, 5))]


@pytest.mark.parametrize("debiased", [False, True])
def test_equals_the_direct_formula(layers, debiased):
    cka, frames = stream_cka(lambda: [padded(layers, [100, 140])], 3, 9, debiased=debiased, stride=1)
    direct = direct_debiased_cka if debiased else direct_cka
    expected = [[direct(x, y) for y in layers] for x in layers]
    assert frames == 240
    np.testing.assert_allclose(cka, expected, atol=1e-6)
    np.testing.assert_allclose(np.diag(cka), 1.0, atol=0)


def test_debiased_with_a_handful_of_frames(layers):
    few = [layer[:7] for layer in layers]  # the first batch's mean is far from the others'
    batches = [padded([layer[:2] for layer in few], [2]), padded([layer[2:] for layer in few], [5])]
    cka, _ = stream_cka(lambda: batches, 3, 9, debiased=True, stride=1)
    assert cka[0, 1] == pytest.approx(direct_debiased_cka(few[0], few[1]), abs=1e-9)
    assert cka[0, 2] == pytest.approx(direct_debiased_cka(few[0], few[2]), abs=1e-9)


def test_hand_computed():
    # Xc = (-1, 0, 1, 0), Yc = (-1, 1, 1, -1): Yc'Xc = 2, Xc'Xc = 2, Yc'Yc = 4, so CKA = 4 / (2 * 4) = 0.5
    x, y = np.array([[1.0], [2.0], [3.0], [2.0]]), np.array([[0.0], [2.0], [2.0], [0.0]])
    cka, _ = stream_cka(lambda: [padded([x, y], [4])], 2, 1, stride=1)
    assert cka[0, 1] == pytest.approx(0.5, abs=1e-12)


def test_independent_of_batch_size_and_order(layers):
    def one_by_one():
        for start in (200, 0, 40, 120, 80, 160):
            yield padded([layer[start : start + 40] for layer in layers], [40])

    together, _ = stream_cka(lambda: [padded(layers, [40] * 6)], 3, 9)
    apart, _ = stream_cka(one_by_one, 3, 9)
    np.testing.assert_allclose(apart, together, atol=1e-10)


def test_one_mean_over_all_frames_and_not_one_per_utterance(layers):
    moved = [np.concatenate([layer[:120], layer[120:] + 4.0]) for layer in layers]
    halves = [padded([layer[half] for layer in moved], [120]) for half in (slice(0, 120), slice(120, 240))]
    cka, _ = stream_cka(lambda: halves, 3, 9, stride=1)
    assert cka[0, 2] == pytest.approx(direct_cka(moved[0], moved[2]), abs=1e-6)
    assert abs(cka[0, 2] - direct_cka(layers[0], layers[2])) > 0.1


def test_every_fifth_frame_of_each_utterance(layers):
    cka, frames = stream_cka(lambda: [padded(layers, [97, 143])], 3, 9, stride=5)
    picked = [np.concatenate([layer[:97:5], layer[97::5]]) for layer in layers]
    assert frames == 20 + 29
    assert cka[0, 1] == pytest.approx(direct_cka(picked[0], picked[1]), abs=1e-6)


def test_padding_takes_no_part(layers):
    clean, _ = stream_cka(lambda: [padded(layers, [30, 210])], 3, 9)
    dirty, _ = stream_cka(lambda: [padded(layers, [30, 210], fill=float("nan"))], 3, 9)
    np.testing.assert_array_equal(dirty, clean)


def test_invariant_to_isometry_scale_and_shift(layers):
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    batch = padded([layers[0], 3 * layers[0] @ rotation + 5], [240])
    for debiased in (False, True):
        cka, _ = stream_cka(lambda: [batch], 2, 6, debiased=debiased)
        assert cka[0, 1] == pytest.approx(1.0, abs=1e-9)


def test_independent_data_look_alike_only_to_the_plain_estimator():
    generator = np.random.default_rng(2)
    data = [generator.normal(size=(128, 64)) for _ in range(2)]
    plain, _ = stream_cka(lambda: [padded(data, [128])], 2, 64, stride=1)
    debiased, _ = stream_cka(lambda: [padded(data, [128])], 2, 64, stride=1, debiased=True)
    assert plain[0, 1] > 0.3
    assert abs(debiased[0, 1]) < 0.05


def test_passes_keep_to_the_memory_and_change_nothing(layers):
    passes = 0

    def batches():
        nonlocal passes
        passes += 1
        return [padded(layers, [100, 140])]

    whole, _ = stream_cka(batches, 3, 9)
    assert passes == 1
    split, _ = stream_cka(batches, 3, 9, memory=1500)
    assert passes > 2
    np.testing.assert_array_equal(split, whole)


@pytest.mark.parametrize(("count", "width", "expected"), [(13, 768, 1), (25, 1024, 3)])
def test_a_large_teacher_needs_three_passes_of_a_gibibyte(count: int, width: int, expected: int):
    passes: list[int] = []
    narrow = [np.random.default_rng(index).normal(size=(20, 2)) for index in range(count)]
    stream_cka(lambda: passes.append(1) or [padded(narrow, [20])], count, width, stride=1)
    assert len(passes) == expected


def test_moments_do_not_grow_with_frames(layers):
    moments = PairMoments([(0, 1)], stride=1)
    moments.update(*padded(layers, [240]))
    before = [matrix.shape for matrix in moments._moments.values()]
    for _ in range(5):
        moments.update(*padded(layers, [240]))
    assert [matrix.shape for matrix in moments._moments.values()] == before == [(8, 11)]


def test_refusals(layers):
    with pytest.raises(UserError, match="at least 4"):
        stream_cka(lambda: [padded([layers[0][:3]], [3])], 1, 6, stride=1)
    with pytest.raises(UserError, match="at least 4"):
        stream_cka(lambda: [], 1, 6)
    constant = np.full((20, 6), 0.1)
    with pytest.raises(UserError, match="representation 1 is constant"):
        stream_cka(lambda: [padded([layers[0][:20], constant], [20])], 2, 6, stride=1)
    with pytest.raises(UserError, match="not finite"):
        stream_cka(lambda: [padded([layers[0][:20] * np.nan], [20])], 1, 6, stride=1)

    sizes = iter([240, 200])
    with pytest.raises(UserError, match="changed between two passes"):
        stream_cka(lambda: [padded([layers[0][: (n := next(sizes))]] * 2, [n])], 2, 6, memory=1100, stride=1)
