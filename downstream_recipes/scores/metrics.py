"""The columns of the SUPERB table, its published rows as data, and the two scores over a whole row.

Percentages are in percent, MTWV is a fraction, as SUPERB prints them.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from upstream.errors import UserError

REFERENCES = Path(__file__).parents[1] / "reference_scores.csv"


@dataclass(frozen=True)
class Metric:
    """One column of the table."""

    task: str
    name: str
    higher_better: bool

    @property
    def key(self) -> str:
        return f"{self.task}_{self.name}"

    def points(self, value: float) -> float:
        """The value of one of METRICS as points of 100, higher better, as the overall score adds them up."""
        if self.name == "mtwv":
            return 100 * value
        return value if self.higher_better else 100 - value


METRICS = (
    Metric("pr", "per", False),
    Metric("asr", "wer", False),
    Metric("ks", "acc", True),
    Metric("qbe", "mtwv", True),
    Metric("sid", "acc", True),
    Metric("asv", "eer", False),
    Metric("sd", "der", False),
    Metric("ic", "acc", True),
    Metric("sf", "f1", True),
    Metric("sf", "cer", False),
    Metric("er", "acc", True),
)
# of tasks that are not among the ten: columns where somebody has them, in no score over the table
EXTRA_METRICS = (
    Metric("se", "pesq", True),
    Metric("se", "stoi", True),
    Metric("ss", "si_sdr", True),
)


@dataclass(frozen=True)
class Reference:
    """A published row of the table; what it does not print is None or missing from `scores`."""

    upstream: str
    corpus: str
    params_m: float | None
    macs_g: float | None
    overall: float | None
    generalizability: float | None
    scores: Mapping[str, float]  # Metric.key -> value


def references() -> list[Reference]:
    """The published rows; the first two, `best` and `FBANK`, anchor the generalizability score."""

    def number(text: str) -> float | None:
        return float(text) if text else None

    with REFERENCES.open(newline="") as file:
        return [
            Reference(
                row["upstream"],
                row["corpus"],
                number(row["params_m"]),
                number(row["macs_g"]),
                number(row["overall"]),
                number(row["generalizability"]),
                {metric.key: float(row[metric.key]) for metric in METRICS if row[metric.key]},
            )
            for row in csv.DictReader(file)
        ]


def overall_score(scores: Mapping[str, float]) -> float:
    """Mean of the table's eleven numbers as points of 100, as in the tables of the STaR and DPHuBERT papers.

    Args:
        scores: `Metric.key` -> value for every metric; further keys are ignored.

    Raises:
        UserError: a metric is missing.
    """
    _require_all(scores)
    return sum(metric.points(scores[metric.key]) for metric in METRICS) / len(METRICS)


def generalizability_score(scores: Mapping[str, float]) -> float:
    """1000 x the mean over the ten tasks of (x - FBANK) / (best - FBANK); SF's two metrics are averaged first.

    Raises:
        UserError: a metric is missing.
    """
    _require_all(scores)
    best, floor = (reference.scores for reference in references()[:2])
    shares: dict[str, list[float]] = {}
    for metric in METRICS:
        low, high = floor[metric.key], best[metric.key]
        shares.setdefault(metric.task, []).append((scores[metric.key] - low) / (high - low))
    return 1000 * mean(map(mean, shares.values()))


def _require_all(scores: Mapping[str, float]) -> None:
    missing = [metric.key for metric in METRICS if metric.key not in scores]
    if missing:
        raise UserError(f"scores over the whole table need every task; missing are {', '.join(missing)}")
