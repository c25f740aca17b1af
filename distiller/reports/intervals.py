"""Confidence intervals of means over seeds."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from scipy import stats

CONFIDENCE = 0.95


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean and half the width of its t-interval; the latter is NaN for a single value."""
    if len(values) < 2:
        return fmean(values), math.nan
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    return fmean(values), float(quantile * stdev(values) / math.sqrt(len(values)))
