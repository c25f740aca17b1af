"""What every export is checked with before it is kept."""

import math
from pathlib import Path

import torch
from torch import Tensor

from upstream.errors import UserError

TOLERANCE = 1e-4
LENGTHS = (16_000, 11_231, 7_040)  # of the wavs, in samples


def wavs() -> list[Tensor]:
    """Three wavs of different lengths, (sample,) each: noise of speech's loudness that swells and fades."""
    generator = torch.Generator().manual_seed(0)
    return [
        0.1 * torch.randn(length, generator=generator) * torch.sin(torch.linspace(0.1, 9.0, length)).abs()
        for length in LENGTHS
    ]


def farthest(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference; infinite where either is not finite, which `max` would pass over."""
    difference = float((ours - theirs).abs().max())
    return difference if math.isfinite(difference) else math.inf


def checked(difference: float, path: Path, states: str, reference: str) -> float:
    """The difference itself.

    Raises:
        UserError: it is above the tolerance.
    """
    if not difference < TOLERANCE:
        raise UserError(f"{path} is not written: {states} differ from {reference} by {difference:.2g}")
    return difference
