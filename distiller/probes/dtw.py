"""Dynamic time warping between many sequences at once, on one CPU core."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

CHUNK = 64  # items at once, of similar length: the data for an anti-diagonal stays in the processor's cache


def dtw_distances(queries: Sequence[Tensor], items: Sequence[Tensor]) -> Tensor:
    """(query, item): the mean cosine distance 1 - x'y along the cheapest alignment of each pair; symmetric.

    A step in both sequences counts twice (Sakoe & Chiba 1978, symmetric, without a slope constraint), so every path
    has the weight len(query) + len(item), and its cost is divided by that.

    Args:
        queries, items: each (frame, channel), frames of length 1.
    """
    result = torch.empty(len(queries), len(items))
    order = sorted(range(len(items)), key=lambda index: len(items[index]))
    for start in range(0, len(order), CHUNK):
        chunk = order[start : start + CHUNK]
        padded = pad_sequence([items[index] for index in chunk])  # (frame, item, channel)
        columns = padded.flatten(0, 1).T
        lengths = np.array([len(items[index]) for index in chunk])
        for row, query in enumerate(queries):
            costs = (1 - query @ columns).view(len(query), len(padded), len(chunk)).numpy()
            result[row, chunk] = torch.from_numpy(path_costs(costs, lengths)) / torch.from_numpy(len(query) + lengths)
    return result


def path_costs(costs: NDArray[np.float32], lengths: NDArray[np.int_]) -> NDArray[np.float32]:
    """(item,): the cheapest path from the first pair of frames to the last, a step in both sequences counted twice.

    The recursion runs over anti-diagonals, whose cells depend only on the two before, for all items together.

    Args:
        costs: (query frame, item frame, item); values beyond an item's length have no effect.
        lengths: (item,) frames of each item.
    """
    rows, columns, items = costs.shape
    cells = costs.reshape(rows * columns, items)  # row * columns + column; along an anti-diagonal one in columns - 1
    step = max(1, columns - 1)
    before, last, current = np.full((3, rows + 1, items), np.inf, costs.dtype)  # by row + 1; row 0 is outside
    before[0] = 0  # the corner that every path starts from
    ends = np.empty((columns, items), costs.dtype)  # of the paths that end in the last row
    for diagonal in range(rows + columns - 1):
        first, stop = max(0, diagonal - columns + 1), min(rows, diagonal + 1)  # its rows
        begin = diagonal + first * (columns - 1)
        cost = cells[begin : begin + (stop - first - 1) * step + 1 : step]
        path = current[first + 1 : stop + 1]
        np.minimum(last[first:stop], last[first + 1 : stop + 1], out=path)
        path += cost
        np.minimum(path, before[first:stop] + 2 * cost, out=path)
        if stop == rows:
            ends[diagonal - rows + 1] = path[-1]
        before[0] = np.inf
        before, last, current = last, current, before
    return ends[lengths - 1, np.arange(items)]
