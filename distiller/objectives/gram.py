"""Distances between temporal Gram matrices of teacher and student, in fp32 and bounded in memory.

A temporal Gram matrix relates the frames of one utterance: G^l = F^l (F^l)^T, or with a lag of one layer
Gi^l = F^{l-1} (F^l)^T, both in R^{N x N} (STaR, arXiv 2312.09040). |G_T - G_S|^2 is computed in one of two forms:

- direct: the N x N differences, in blocks of rows;
- identity: <X Y', A B'> = <A'X, B'Y>, so every inner product of Gram matrices is one of channel matrices. Cheaper when
  sequences are longer than the widths, but |G_T|^2 + |G_S|^2 - 2 <G_T, G_S> cancels when the two are nearly equal, so
  its value is kept only above `CANCELLATION` times |G_T|^2. On a CPU only: elsewhere the host would wait for the
  device to know which values are kept, and TF32 would lose more digits to the cancellation.

Frames are divided by the root of the number of valid ones beforehand, so every |G|^2 here is a mean over an
utterance's valid frame pairs.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

BLOCK_ELEMENTS = 1 << 24  # of a block of Gram rows, 64 MiB in fp32
CANCELLATION = 1e-3  # distance / |G_T|^2 below which the identity has lost too many digits
TINY = 1e-16  # mean square Gram entry below which a centred Gram is rounding noise and is not scaled to unit norm

Frames = tuple[Tensor, Tensor]  # X and Y of a Gram matrix X Y', each (..., frame, channel); one object twice if X is Y


@contextmanager
def fp32_products(device_type: str, on_cuda: str = "ieee") -> Iterator[None]:
    """Matrix products of fp32 numbers without autocast: true fp32 on a CPU, on CUDA "ieee" (true fp32) or "tf32".

    Both flags are restored afterwards, so a backward pass needs its own context.
    """
    cpu_matmul = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]  # set at import
    backends = {torch.backends.cuda.matmul: on_cuda, cpu_matmul: "ieee"}
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend, precision in backends.items():
            backend.fp32_precision = precision
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def temporal_gram(queries: Tensor, keys: Tensor) -> Tensor:
    """(..., query, channel) and (..., key, channel) -> (..., query, key): G when both are F^l, Gi with F^{l-1}, F^l."""
    return queries @ keys.mT


def gram_features(states: Sequence[Tensor], frame_mask: Tensor, scaling: str) -> Tensor:
    """The frames whose products are the scaled Gram matrices' entries divided by the number of valid frames.

    Args:
        states: each (batch, frame, channel), of one width.
        frame_mask: (batch, frame) bool; padded frames become 0 and receive no gradient, whatever their values.
        scaling: "none": F; "width": F / sqrt(d), that is G / d; "unit": frames of unit norm; "centred": minus the mean
            over the utterance's valid frames (the Gram matrix's own norm is divided out in `gram_distances`).

    Returns:
        (layer, batch, frame, channel), at least fp32.
    """
    dtype = torch.promote_types(states[0].dtype, torch.float32)
    features = torch.stack([layer.to(dtype) for layer in states]).masked_fill_(~frame_mask[..., None], 0.0)
    counts = frame_mask.sum(dim=1).clamp(min=1).to(dtype)[:, None, None]
    scale = frame_mask[..., None] / counts.sqrt()  # (batch, frame, 1)
    if scaling == "unit":
        features = F.normalize(features, dim=-1)
    elif scaling == "centred":
        features = features - features.sum(dim=2, keepdim=True) / counts
    elif scaling == "width":
        scale = scale / features.shape[-1] ** 0.5
    return features.mul_(scale)  # in place, as above: nothing else uses this memory


def multiply_adds(
    frames: int, teacher_width: int, student_width: int, lags: Sequence[int], gradient: bool, centred: bool = False
) -> tuple[int, int]:
    """Multiply-adds per layer and utterance of the (direct, identity) form of all `lags` together.

    The identity's channel matrices serve every lag; the direct form pays for each, and once more for the norms of
    centred matrices. Values alone at widths 768 / 432 break even at 923 frames for one lag, at 462 for two.
    """
    direct = 0
    for lag in lags:
        student_products = 1 + gradient * (1 if lag == 0 else 2)  # D F; D F and D' F unless D is symmetric
        direct += frames**2 * (teacher_width + student_products * student_width)
    identity = teacher_width**2 + student_width**2 + teacher_width * student_width
    if gradient:
        identity += 2 * student_width**2 + teacher_width * student_width
    return direct * (2 if centred else 1), frames * identity


def gram_distances(
    teacher: Tensor,
    student: Tensor,
    lags: Sequence[int],
    centred: bool = False,
    identity: bool = True,
    precision: str = "ieee",
) -> list[tuple[Tensor, Tensor]]:
    """|G_T - G_S|^2 and |G_T|^2 per layer and utterance, for each lag.

    Args:
        teacher, student: `gram_features` of F^0..F^L, (layer, batch, frame, channel); no gradient reaches the teacher.
        lags: 0: F^l against itself; 1: F^{l-1} against F^l; for l = 1..L.
        centred: divide each Gram matrix by its norm, the root of its mean square entry over valid pairs.
        identity: whether the identity may be used on a CPU, where it is cheaper.
        precision: of the products on CUDA, see `fp32_products`.

    Returns:
        For each lag two of (layer l = 1..L, batch).
    """
    teacher = teacher.detach()
    frames, teacher_width = teacher.shape[-2:]
    costs = multiply_adds(frames, teacher_width, student.shape[-1], lags, student.requires_grad, centred)
    with fp32_products(student.device.type, precision):
        if identity and student.device.type == "cpu" and costs[1] < costs[0]:
            return _identity_distances(teacher, student, lags, centred)
        return [_direct_distance(_lagged(teacher, lag), _lagged(student, lag), centred) for lag in lags]


def _lagged(features: Tensor, lag: int) -> Frames:
    """F^{l-lag} and F^l for l = 1..L."""
    later = features[1:]
    return (features[1 - lag : len(features) - lag] if lag else later), later


def _direct_distance(teacher: Frames, student: Frames, centred: bool) -> tuple[Tensor, Tensor]:
    """Distance and the teacher's squared norm, over the frames' leading dimensions."""
    if centred:
        teacher, student = _unit_gram(teacher), _unit_gram(student)
    return _gram_difference(student, teacher)


def _unit_gram(frames: Frames) -> Frames:
    """Frames whose Gram matrix has unit norm."""
    left, right = frames
    squared_norm, _ = _gram_difference(frames, None)
    scale = squared_norm.clamp(min=TINY)[..., None, None] ** -0.25
    scaled = left * scale
    return scaled, scaled if right is left else right * scale


def _gram_difference(student: Frames, teacher: Frames | None) -> tuple[Tensor, Tensor]:
    """|G_S - G_T|^2 and |G_T|^2, G_T being 0 without a teacher."""
    left, right = student
    distance, norm = _GramDifference.apply(
        left.flatten(0, -3),
        None if right is left else right.flatten(0, -3),
        *(None if teacher is None else frames.flatten(0, -3) for frames in teacher or student),
    )
    return distance.view(left.shape[:-2]), norm.view(left.shape[:-2])


class _GramDifference(torch.autograd.Function):
    """Blocks of rows of D = X_S Y_S' - X_T Y_T'; each block also adds its part of the gradients 2 D Y_S and 2 D' X_S.

    Thus no N x N matrix outlives its block, none is computed twice, and no product runs in a backward pass outside
    `fp32_products`. A missing Y_S means Y_S = X_S: D is symmetric and the gradient 4 D X_S.
    """

    @staticmethod
    def forward(
        ctx: Any, left: Tensor, right: Tensor | None, teacher_left: Tensor | None, teacher_right: Tensor | None
    ) -> tuple[Tensor, Tensor]:  # each (gram, frame, channel) -> (gram,), (gram,)
        symmetric, right = right is None, left if right is None else right
        grams, frames, _ = left.shape
        distance, norm = left.new_zeros(grams), left.new_zeros(grams)
        gradient = any(ctx.needs_input_grad)
        left_gradient = torch.empty_like(left) if gradient else None
        right_gradient = torch.zeros_like(right) if gradient and not symmetric else None
        rows = max(1, BLOCK_ELEMENTS // max(1, grams * frames))
        for start in range(0, frames, rows):
            block = slice(start, start + rows)
            difference = temporal_gram(left[:, block], right)  # (gram, query, key)
            if teacher_left is not None and teacher_right is not None:
                target = temporal_gram(teacher_left[:, block], teacher_right)
                norm += target.square().sum(dim=(1, 2))
                difference -= target
            distance += difference.square().sum(dim=(1, 2))
            if left_gradient is not None:
                left_gradient[:, block] = (difference @ right).mul_(4.0 if symmetric else 2.0)
            if right_gradient is not None:
                right_gradient.baddbmm_(difference.mT, left[:, block], alpha=2.0)
        ctx.save_for_backward(left_gradient, right_gradient)
        ctx.mark_non_differentiable(norm)
        return distance, norm

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch: one argument per output
        ctx: Any, grad_distance: Tensor, _: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        left, right = (None if saved is None else saved * grad_distance[:, None, None] for saved in ctx.saved_tensors)
        return left, right, None, None


def _identity_distances(
    teacher: Tensor, student: Tensor, lags: Sequence[int], centred: bool
) -> list[tuple[Tensor, Tensor]]:
    """As `_direct_distance` for each lag, from channel matrices; the direct form where those would cancel."""
    teacher_channels = teacher.mT @ teacher  # C_T, (layer, batch, channel, channel)
    student_channels = _PreciseProduct.apply(student.mT, student)
    cross_channels = _PreciseProduct.apply(teacher.mT, student)
    results = []
    for lag in lags:
        teacher_norm, student_norm, cross = (
            (left * right).sum(dim=(-2, -1))
            for left, right in (_lagged(c, lag) for c in (teacher_channels, student_channels, cross_channels))
        )
        if centred:
            teacher_scale, student_scale = (norm.clamp(min=TINY).rsqrt() for norm in (teacher_norm, student_norm))
            teacher_norm = teacher_norm * teacher_scale**2
            student_norm = student_norm * student_scale**2
            cross = cross * teacher_scale * student_scale
        distance = teacher_norm + student_norm - 2.0 * cross
        cancelled = ~(distance.detach() > CANCELLATION * teacher_norm)  # NaN counts as cancelled
        if bool(cancelled.any()):
            direct, _ = _direct_distance(
                _selected(_lagged(teacher, lag), cancelled), _selected(_lagged(student, lag), cancelled), centred
            )
            distance = distance.index_put((cancelled,), direct)
        results.append((distance, teacher_norm))
    return results


def _selected(frames: Frames, chosen: Tensor) -> Frames:
    """The frames of chosen layers and utterances, (chosen, frame, channel)."""
    left, right = frames
    first = left[chosen]
    return first, first if right is left else right[chosen]


class _PreciseProduct(torch.autograd.Function):
    """left @ right with exact backward products too, wherever backward is called from."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        return left @ right

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch: one argument per output
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        left, right = ctx.saved_tensors
        with fp32_products(gradient.device.type):
            return (
                gradient @ right.mT if ctx.needs_input_grad[0] else None,
                left.mT @ gradient if ctx.needs_input_grad[1] else None,
            )
