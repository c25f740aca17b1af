"""How well units predict phones, and how many bits they take."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Rate(NamedTuple):
    """A stream of units: units per second x bits of a unit = bits per second."""

    per_second: float
    entropy: float  # bits, of the units' frequencies regardless of context
    bits_per_second: float


class Agreement(NamedTuple):
    """Agreement of units with the phones of the same frames; 1 is best (Hsu et al., 2021, section IV-C)."""

    pnmi: float  # mutual information of phone and unit, as a share of the phones' entropy
    phone_purity: float  # share of frames whose phone is the most frequent one of their unit
    cluster_purity: float  # share of frames whose unit is the most frequent one of their phone


def rate(sequences: Iterable[Sequence[int]], seconds: float) -> Rate:
    """The rate of a corpus's units; its audio has `seconds` in total."""
    counts = np.array(list(Counter(unit for sequence in sequences for unit in sequence).values()))
    per_second, bits = float(counts.sum() / seconds), entropy(counts)
    return Rate(per_second, bits, per_second * bits)


def entropy(counts: NDArray[np.int64]) -> float:
    """Bits of a distribution given by counts of any shape."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def together(phones: NDArray[np.int64], units: NDArray[np.int64], shape: tuple[int, int]) -> NDArray[np.int64]:
    """How often each phone and unit co-occur: two (frame,) -> (phone, unit) of this shape."""
    return np.bincount(phones * shape[1] + units, minlength=shape[0] * shape[1]).reshape(shape)


def agreement(counts: NDArray[np.int64]) -> Agreement:
    """The agreement of phones and units, from their co-occurrence counts (phone, unit)."""
    phones, units, total = counts.sum(axis=1), counts.sum(axis=0), counts.sum()
    information = entropy(phones) + entropy(units) - entropy(counts)
    pnmi = information / entropy(phones) if entropy(phones) else 1.0  # one phone is known without a unit
    return Agreement(float(pnmi), float(counts.max(axis=0).sum() / total), float(counts.max(axis=1).sum() / total))


def deduplicated(units: Sequence[int]) -> tuple[list[int], list[int]]:
    """The units with consecutive repetitions merged, and the number of frames of each."""
    array = np.asarray(units)
    starts = np.flatnonzero(np.diff(array, prepend=-1))  # of runs; no unit is -1
    return array[starts].tolist(), np.diff(starts, append=len(array)).tolist()
