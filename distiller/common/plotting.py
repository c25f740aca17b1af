"""What all figures share."""

import csv
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from distiller.common.files import write_with

COLOURS = {
    "filterbank": "#9a9a9a",
    "stacked_filterbank": "#5f5f5f",
    "random": "#d9a441",
    "teacher": "#2b6ca3",
    "student": "#c8412b",
}


def read_table(path: Path) -> dict[str, list[float]]:
    """The columns of a CSV of numbers; empty when there is no such file."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in (rows[0] if rows else [])}


def save_figure(figure: Any, path: Path) -> None:
    """Write a PNG whole, and let go of the figure."""
    write_with(path, lambda temporary: figure.savefig(temporary, dpi=150))
    plt.close(figure)
