"""The columns of the SUPERB table, its published rows as data, and the two scores over a whole row.

Percentages are in percent, MTWV is a fraction, as SUPERB prints them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean

from distiller.common.files import read_csv
from downstream_recipes.tasks.tasks import TASKS, Metric, Task

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
# of the ten tasks; others are columns if a row has them, and do not count in scores over the table
MAIN_COLUMNS = [column for column in COLUMNS if not column.task.extra]


@dataclass(frozen=True)
class Row:
    """The scores of one model.

    Args:
        scores: `Column.key` -> value; unknown ones are missing.
        published: copied from a paper's table.
        miniature: of miniature corpora, on which the two scores over the table would be meaningless.
    """

    name: str
    params_m: float | None
    scores: Mapping[str, float]
    published: bool = False
    miniature: bool = False

    @property
    def complete(self) -> bool:
        """Whether the two scores over the table are defined."""
        return not self.miniature and all(column.key in self.scores for column in MAIN_COLUMNS)

    @property
    def overall(self) -> float | None:
        """Mean of the table's eleven numbers as points of 100, as in the tables of the STaR and DPHuBERT papers."""
        if not self.complete:
            return None
        return mean(column.metric.points(self.scores[column.key]) for column in MAIN_COLUMNS)

    @property
    def generalizability(self) -> float | None:
        """1000 x the mean over the ten tasks of (x - FBANK) / (best - FBANK); SF's two metrics are averaged first."""
        if not self.complete:
            return None
        best, floor = (reference.scores for reference in references()[:2])
        shares: dict[str, list[float]] = {}
        for column in MAIN_COLUMNS:
            low, high = floor[column.key], best[column.key]
            shares.setdefault(column.task.code, []).append((self.scores[column.key] - low) / (high - low))
        return 1000 * mean(map(mean, shares.values()))


@cache
def references() -> list[Row]:
    """The rows as published; the first two, `best` and `FBANK`, anchor the generalizability score."""
    rows = []
    for row in read_csv(REFERENCES):
        name = f"{row['upstream']} ({row['corpus']})" if row["corpus"] else row["upstream"]
        scores = {column.key: float(row[column.key]) for column in MAIN_COLUMNS if row[column.key]}
        rows.append(Row(name, float(row["params_m"]) if row["params_m"] else None, scores, published=True))
    return rows
