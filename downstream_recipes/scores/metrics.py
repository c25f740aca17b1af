"""The columns of the SUPERB table, its published rows as data, and the two scores over a whole row.

Percentages are in percent, MTWV is a fraction, as SUPERB prints them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from distiller.common.files import read_csv
from downstream_recipes.tasks.tasks import TASKS, Metric, Task
from upstream.errors import UserError

REFERENCES = Path(__file__).parents[1] / "reference_scores.csv"


@dataclass(frozen=True)
class Column:
    """A column of the table: a metric of a task."""

    task: Task
    metric: Metric

    @property
    def key(self) -> str:
        return f"{self.task.code}_{self.metric.name}"

    @property
    def title(self) -> str:
        return f"{self.task.title} {self.metric.title}"


COLUMNS = [Column(task, metric) for task in TASKS.values() for metric in task.metrics]
# of the ten tasks; the others are columns if a row has them, and count in no score over the table
MAIN_COLUMNS = [column for column in COLUMNS if not column.task.extra]


@dataclass(frozen=True)
class Row:
    """The scores of one model; what is not known is None, or missing from `scores`."""

    name: str
    params_m: float | None
    scores: Mapping[str, float]  # Column.key -> value
    overall: float | None = None
    generalizability: float | None = None
    published: bool = False

    @property
    def complete(self) -> bool:
        return all(column.key in self.scores for column in MAIN_COLUMNS)


def references() -> list[Row]:
    """The rows as published; the first two, `best` and `FBANK`, anchor the generalizability score."""
    rows = []
    for row in read_csv(REFERENCES):
        name = f"{row['upstream']} ({row['corpus']})" if row["corpus"] else row["upstream"]
        scores = {column.key: float(row[column.key]) for column in MAIN_COLUMNS if row[column.key]}
        keys = ("params_m", "overall", "generalizability")
        params_m, *overall = (float(row[key]) if row[key] else None for key in keys)
        rows.append(Row(name, params_m, scores, *overall, published=True))
    return rows


def overall_score(scores: Mapping[str, float]) -> float:
    """Mean of the table's eleven numbers as points of 100, as in the tables of the STaR and DPHuBERT papers.

    Args:
        scores: `Column.key` -> value for every one of MAIN_COLUMNS; further keys are ignored.

    Raises:
        UserError: one is missing.
    """
    _require_all(scores)
    return sum(column.metric.points(scores[column.key]) for column in MAIN_COLUMNS) / len(MAIN_COLUMNS)


def generalizability_score(scores: Mapping[str, float]) -> float:
    """1000 x the mean over the ten tasks of (x - FBANK) / (best - FBANK); SF's two metrics are averaged first.

    Raises:
        UserError: one of MAIN_COLUMNS is missing.
    """
    _require_all(scores)
    best, floor = (reference.scores for reference in references()[:2])
    shares: dict[str, list[float]] = {}
    for column in MAIN_COLUMNS:
        low, high = floor[column.key], best[column.key]
        shares.setdefault(column.task.code, []).append((scores[column.key] - low) / (high - low))
    return 1000 * mean(map(mean, shares.values()))


def _require_all(scores: Mapping[str, float]) -> None:
    missing = [column.key for column in MAIN_COLUMNS if column.key not in scores]
    if missing:
        raise UserError(f"scores over the whole table need every task; missing are {', '.join(missing)}")
