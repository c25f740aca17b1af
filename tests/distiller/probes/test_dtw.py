import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from distiller.probes import dtw
from distiller.probes.dtw import dtw_distances


def plain(query: Tensor, item: Tensor) -> float:
    """The recursion as in the paper, cell by cell."""
    costs = 1 - query.double() @ item.double().T
    best = np.full((len(query) + 1, len(item) + 1), np.inf)
    best[0, 0] = 0
    for i, j in np.ndindex(len(query), len(item)):
        cost = float(costs[i, j])
        best[i + 1, j + 1] = min(best[i, j] + 2 * cost, best[i, j + 1] + cost, best[i + 1, j] + cost)
    return best[-1, -1] / (len(query) + len(item))


def sequences(lengths: list[int], seed: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [F.normalize(torch.randn(length, 4, generator=random), dim=1) for length in lengths]


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_dtw_is_the_plain_recursion_for_all_lengths_and_chunks(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtw, "CHUNK", chunk)
    queries, items = sequences([1, 2, 7, 5], 1), sequences([6, 1, 9, 3, 2, 6, 1], 2)
    expected = torch.tensor([[plain(query, item) for item in items] for query in queries])
    torch.testing.assert_close(dtw_distances(queries, items), expected.float(), rtol=0, atol=1e-6)


def test_dtw_is_symmetric_and_ignores_tempo() -> None:
    first, second = sequences([8, 5, 3], 3), sequences([4, 6], 4)
    torch.testing.assert_close(dtw_distances(first, second), dtw_distances(second, first).T, rtol=0, atol=1e-6)
    slow = [one.repeat_interleave(3, dim=0) for one in first]
    assert float(dtw_distances(first, slow).diagonal().abs().max()) < 1e-6
