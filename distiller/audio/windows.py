"""Windows of recordings that are too long for a batch."""

import math
from itertools import pairwise

from lhotse.cut.data import DataCut
from lhotse.utils import compute_num_samples, fastcopy

from upstream.config import SAMPLE_RATE


def source_samples(cut: DataCut) -> int:
    """Samples of a cut at its own rate, as decoded."""
    assert cut.recording is not None
    # "whole": a complete file of a prepared corpus, whose cut has its source's length to a fraction of a sample
    if ((cut.custom or {}).get("span") or {}).get("whole"):
        return cut.recording.num_samples
    return compute_num_samples(cut.duration, cut.sampling_rate)


def windows(cut: DataCut, longest: float) -> list[DataCut]:
    """A cut in the fewest equal windows of at most `longest` seconds: ID-0, ID-1, ...

    Each stores the cut and its range of samples at 16 kHz: the decoder returns exactly those.
    """
    total = math.ceil(source_samples(cut) * SAMPLE_RATE / cut.sampling_rate)  # at 16 kHz
    count = math.ceil(total / max(1, int(longest * SAMPLE_RATE)))
    bounds = [index * total // count for index in range(count + 1)]
    return [
        fastcopy(
            cut,
            id=f"{cut.id}-{index}",
            start=cut.start + first / SAMPLE_RATE,
            duration=(last - first) / SAMPLE_RATE,
            supervisions=[],
            custom={"window": (cut, first, last)},
        )
        for index, (first, last) in enumerate(pairwise(bounds))
    ]


def window_of(cut: DataCut) -> tuple[DataCut, int, int | None]:
    """The cut of a window, and its first and last sample there at 16 kHz; 0 and None if it is not a window."""
    return (cut.custom or {}).get("window") or (cut, 0, None)
