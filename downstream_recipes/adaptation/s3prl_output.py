"""What s3prl leaves: numbers in what it prints (the last one of a run, or the best one of a training), checkpoints."""

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from upstream.errors import UserError

FRACTION = 100.0  # s3prl prints fractions, SUPERB percent


def read_checkpoint(path: Path) -> dict[str, Any]:
    """One of the runner's checkpoints, on the CPU, without running code; tensors stay on the disk until they are used.

    Raises whatever torch.load stumbles over when the file was cut short.
    """
    # the runner's arguments; harmless. For good: the context manager would take back what the runner itself relies on
    torch.serialization.add_safe_globals([argparse.Namespace])
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


@dataclass(frozen=True)
class Printed:
    """How s3prl prints a metric: a pattern with {split}, what it is multiplied by, whether higher is better."""

    pattern: str
    scale: float
    higher_better: bool

    def values(self, text: str, split: str) -> list[float]:
        pattern = self.pattern.format(split=re.escape(split))
        return [self.scale * float(value) for value in re.findall(pattern, text, re.MULTILINE)]


ACCURACY = Printed(r"^{split} acc: (\S+)$", FRACTION, True)
# task -> metric -> how it is printed; the first metric of a task is the one that training is judged by
TESTED: Mapping[str, Mapping[str, Printed]] = {
    "pr": {"per": Printed(r"^{split} per: (\S+)$", FRACTION, False)},
    "asr": {"wer": Printed(r"^{split} wer: (\S+)$", 1.0, False)},
    "ks": {"acc": ACCURACY},
    "sid": {"acc": ACCURACY},
    "ic": {"acc": ACCURACY},
    "er": {"acc": ACCURACY},
    "asv": {"eer": Printed(r"^sv-voxceleb1/{split}-EER: (\S+)$", FRACTION, False)},
    "sf": {
        "f1": Printed(r"^{split} slot_type_f1: (\S+)$", FRACTION, True),
        "cer": Printed(r"^{split} slot_value_cer: (\S+)$", FRACTION, False),
    },
    # frame-wise: good for choosing on dev, but not SUPERB's DER
    "sd": {"frame_acc": Printed(r"^mode {split} acc (\S+) der \S+$", FRACTION, True)},
    "se": {metric: Printed(rf"^Average {metric} of \d+ utts is (\S+)$", 1.0, True) for metric in ("pesq", "stoi")},
    "ss": {"si_sdr": Printed(r"^Average si_sdr of \d+ utts: (\S+)$", 1.0, True)},
}


def last_scores(task: str, split: str, text: str) -> dict[str, float]:
    """Each metric of the task as printed last for `split`.

    Raises:
        UserError: one of them was not printed.
    """
    found = {metric: printed.values(text, split) for metric, printed in TESTED[task].items()}
    missing = [metric for metric, values in found.items() if not values]
    if missing:
        raise UserError(f"{task}: s3prl printed no {missing[0]} for {split}")
    return {metric: values[-1] for metric, values in found.items()}


def best_score(task: str, split: str, text: str) -> float | None:
    """The best value of the task's first metric that a training printed for `split`; None without an evaluation."""
    printed = next(iter(TESTED[task].values()))
    values = printed.values(text, split)
    return (max(values) if printed.higher_better else min(values)) if values else None


def is_better(task: str, first: float, second: float) -> bool:
    """Whether `first` beats `second` in the task's first metric."""
    return first > second if next(iter(TESTED[task].values())).higher_better else first < second
