"""Linear centred kernel alignment between layers, streamed over batches.

CKA(X, Y) = HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)), frames as samples (Kornblith et al. 2019, arXiv 1905.00414).
For linear kernels both the plain estimator, ||Yc' Xc||_F^2 with one mean over all frames, and the debiased one (Song
et al. 2012) are functions of second moments alone, so frames need not be kept.

Memory. The moments of one pair of d-wide layers are (d + 2)^2 doubles, whatever the number of frames: 4.7 MB at d =
768, 8.4 MB at d = 1024. Every pair of 13 Base layers fits in 0.43 GB and one pass; the 325 pairs of 25 Large layers
would be 2.7 GB, so `stream_cka` splits the pairs into passes of at most `memory` bytes over the same batches (3
passes at the default 1 GiB). The alternatives are worse: keeping the frames takes N L d floats (2.1 GB at the smallest
sensible N = 20 d, and growing with N); a random projection or a sample of frames is not exact.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, combinations_with_replacement

import numpy as np
import torch
from torch import Tensor

from upstream.errors import UserError

Pair = tuple[int, int]
# representations, each (batch, frame, channel), and frame mask (batch, frame)
StateBatch = tuple[Sequence[Tensor], Tensor]

FRAME_STRIDE = 5  # neighbouring 20 ms frames are nearly copies of each other: every fifth carries the same information
DEFAULT_MEMORY = 1 << 30


class PairMoments:
    """Second moments of chosen pairs of representations over all valid frames, in fp64.

    Each frame becomes z = (x, |x|^2, 1); the matrix sum_t z_i z_j' of a pair then holds every sum that either
    estimator needs. Frames are shifted by the first batch's mean, which changes no result and keeps the sums free of
    cancellation.
    """

    def __init__(self, pairs: Iterable[Pair], stride: int = FRAME_STRIDE):
        self.pairs = list(pairs)
        self.stride = stride
        self.frames = 0
        self._used = sorted({index for pair in self.pairs for index in pair})
        self._shift: dict[int, Tensor] = {}
        self._moments: dict[Pair, Tensor] = {}

    @torch.no_grad()
    def update(self, states: Sequence[Tensor], frame_mask: Tensor) -> None:
        """Add a batch: states[i] (batch, frame, channel), frame_mask (batch, frame), True on valid frames, a prefix."""
        mask = torch.zeros_like(frame_mask)
        mask[:, :: self.stride] = frame_mask[:, :: self.stride]
        if not mask.any():
            return
        extended = {index: self._extend(index, states[index][mask]) for index in self._used}
        self.frames += int(mask.sum())
        for i, j in self.pairs:
            if (i, j) not in self._moments:
                self._moments[i, j] = extended[i].new_zeros(extended[i].shape[1], extended[j].shape[1])
            self._moments[i, j].addmm_(extended[i].T, extended[j])

    def _extend(self, index: int, frames: Tensor) -> Tensor:  # (frame, channel) -> (frame, channel + 2)
        frames = frames.cpu() if frames.device.type == "mps" else frames  # MPS has no float64
        frames = frames.double()
        if index not in self._shift:
            self._shift[index] = frames.mean(dim=0)
        frames = frames - self._shift[index]
        return torch.cat([frames, frames.square().sum(1, keepdim=True), torch.ones_like(frames[:, :1])], dim=1)

    def hsic(self, pair: Pair, debiased: bool = False) -> float:
        """HSIC of a pair up to a factor that cancels in CKA; 0 for a constant representation with itself."""
        estimator = _debiased_hsic if debiased else _plain_hsic
        value = float(estimator(self._moments[pair]))
        # a spread of 1e-10 of the mean is rounding of the forward pass, not variance
        rounding = (1e-20 * self.frames * float(self._shift[pair[0]].square().sum())) ** 2
        return 0.0 if pair[0] == pair[1] and value <= rounding else value


def _plain_hsic(moments: Tensor) -> Tensor:
    """||Yc' Xc||_F^2 with Xc, Yc centred by the mean over all frames."""
    cross, sum_x, sum_y, count = moments[:-2, :-2], moments[:-2, -1], moments[-1, :-2], moments[-1, -1]
    return (cross - torch.outer(sum_x, sum_y) / count).square().sum()


def _debiased_hsic(moments: Tensor) -> Tensor:
    """n (n - 3) times the unbiased HSIC of Song et al. 2012 (JMLR 13, eq. 5), K and L with their diagonals removed.

    tr(KL) + 1'K1 1'L1 / ((n-1)(n-2)) - 2 1'KL1 / (n-2), where K = XX' - diag|x|^2 and L = YY' - diag|y|^2.
    """
    cross, sum_x, sum_y, count = moments[:-2, :-2], moments[:-2, -1], moments[-1, :-2], moments[-1, -1]
    x_norm_y, norm_x_y = moments[:-2, -2], moments[-2, :-2]  # sum_t x |y|^2 and sum_t |x|^2 y
    norm_x, norm_y, norm_x_norm_y = moments[-2, -1], moments[-1, -2], moments[-2, -2]
    trace = cross.square().sum() - norm_x_norm_y
    total_x, total_y = sum_x @ sum_x - norm_x, sum_y @ sum_y - norm_y
    rows = sum_x @ cross @ sum_y - sum_x @ x_norm_y - norm_x_y @ sum_y + norm_x_norm_y
    return trace + total_x * total_y / ((count - 1) * (count - 2)) - 2 * rows / (count - 2)


def stream_cka(
    batches: Callable[[], Iterable[StateBatch]],
    count: int,
    width: int,
    debiased: bool = False,
    stride: int = FRAME_STRIDE,
    memory: int = DEFAULT_MEMORY,
) -> tuple[np.ndarray, int]:
    """CKA matrix, symmetric, and the number of frames.

    Args:
        batches: starts one pass over the calibration set; each must give the same utterances, in any order and batches.
        count: of representations.
        width: the most channels that any of them has.
        memory: bytes of a pass's moments (see the module's docstring); a pass has at least one pair.

    Raises:
        UserError: fewer than 4 frames, a representation is constant or not finite, or the passes differ.
    """
    pairs = list(combinations_with_replacement(range(count), 2))
    at_once = max(1, memory // (8 * (width + 2) ** 2))
    hsic: dict[Pair, float] = {}
    frames: set[int] = set()
    for start in range(0, len(pairs), at_once):
        moments = PairMoments(pairs[start : start + at_once], stride)
        for states, frame_mask in batches():
            moments.update(states, frame_mask)
        if moments.frames < 4:
            raise UserError(
                f"the calibration set gives {moments.frames} frames at a stride of {stride}; CKA needs at least 4"
            )
        frames.add(moments.frames)
        hsic |= {pair: moments.hsic(pair, debiased) for pair in moments.pairs}
    if len(frames) > 1:
        raise UserError(f"the calibration set changed between two passes over it: {sorted(frames)} frames")
    for i in range(count):
        if not 0 < hsic[i, i] < math.inf:  # false for NaN
            raise UserError(f"representation {i} is constant or not finite over the calibration set")
    cka = np.eye(count)
    for i, j in combinations(range(count), 2):
        cka[i, j] = cka[j, i] = hsic[i, j] / math.sqrt(hsic[i, i] * hsic[j, j])
    return cka, frames.pop()
