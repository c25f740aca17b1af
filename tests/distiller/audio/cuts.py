"""Cuts without audio, and a sampler of them with the settings that most tests use."""

import numpy as np
from lhotse import AudioSource, Recording

from distiller.audio.sampler import StepBatchSampler

RATE = 16_000


def imaginary(count=300, low=1.0, high=8.0):
    """Cuts without files: sampling must not need them."""
    lengths = np.random.default_rng(1).integers(int(low * RATE), int(high * RATE), count)
    return [
        Recording(
            f"u{i:03d}", [AudioSource("file", [0], f"/none/{i}.wav")], RATE, int(length), float(length / RATE)
        ).to_cut()
        for i, length in enumerate(lengths)
    ]


def sampler(cuts=None, **change):
    arguments = {"batch_seconds": 20.0, "buckets": 5, "seed": 3} | change
    return StepBatchSampler(imaginary() if cuts is None else cuts, **arguments)
