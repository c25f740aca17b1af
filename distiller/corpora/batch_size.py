"""`corpus.batch_seconds: auto` as a number: how much audio fills the memory of a device."""

import json
import math
from collections.abc import Callable
from pathlib import Path

from distiller.common.files import lock_folder, write_json
from upstream.config import SAMPLE_RATE

FILE = "batch.json"
FILLED = (
    0.85  # of a device's free memory; the rest is for gaps between tensors, and for what other ranks' gradients take
)
MEASURED = 30.0  # seconds of audio, about, of the smaller of the two steps that are measured
WITHOUT_LIMIT = 100.0  # seconds of a batch where no device has a memory of its own, such as on a CPU


def fitting_seconds(longest: float, memory: float, peak: Callable[[int, int], float]) -> float:
    """Seconds of audio with which a training step takes at most `memory`, and at least one utterance.

    A step's memory is linear in the number of utterances of one length, so two numbers of them show it. Attention may
    grow with the square of the length, so the longest, which are measured, need the most per second.

    Args:
        longest: seconds of the longest utterance.
        memory: bytes.
        peak: the most bytes that a step takes, of (utterances, samples of each).
    """
    samples, few = math.ceil(longest * SAMPLE_RATE), max(1, round(MEASURED / longest))
    first, second = peak(few, samples), peak(2 * few, samples)
    each = max(1.0, (second - first) / few)
    return max(1, int(few + (memory - first) / each)) * longest


def agreed_seconds(output: Path, find: Callable[[], float]) -> float:
    """What `find` gives to one of the processes that start together; the others read it from OUTPUT/batch.json."""
    with lock_folder(output / "corpus", ".busy", wait=True):
        if not (output / FILE).exists():
            write_json(output / FILE, {"seconds": find()})
        return json.loads((output / FILE).read_text())["seconds"]
