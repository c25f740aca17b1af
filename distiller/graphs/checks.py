"""The checks that every export must pass before it is kept."""

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from distiller.common.files import disk_errors
from upstream.errors import UserError
from upstream.files import PART

TOLERANCE = 1e-4
LENGTHS = (16_000, 11_231, 7_040)  # of the wavs, in samples


@contextmanager
def temporary_folder(output: Path) -> Iterator[Path]:
    """A temporary folder on the output's disk, which must be writable anyway, unlike the system's temporary folder.

    Raises:
        UserError: the disk refuses.
    """
    existing = next(path for path in output.absolute().parents if path.exists())
    with disk_errors(output), tempfile.TemporaryDirectory(dir=existing, prefix=PART) as folder:
        yield Path(folder)


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread, without gradients."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads)


def wavs() -> list[Tensor]:
    """Three wavs of different lengths, (sample,) each: noise of speech's loudness that swells and fades."""
    generator = torch.Generator().manual_seed(0)
    return [
        0.1 * torch.randn(length, generator=generator) * torch.sin(torch.linspace(0.1, 9.0, length)).abs()
        for length in LENGTHS
    ]


def farthest(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference; infinite where either is not finite, which `max` would miss."""
    difference = float((ours - theirs).abs().max())
    return difference if math.isfinite(difference) else math.inf


def checked(difference: float, path: Path, states: str, reference: str) -> float:
    """Returns the difference.

    Raises:
        UserError: it is above the tolerance.
    """
    if not difference < TOLERANCE:
        raise UserError(f"{path} is not written: {states} differ from {reference} by {difference:.2g}")
    return difference
