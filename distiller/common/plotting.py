"""Shared by all figures: a backend without windows, colours, atomic files."""

from pathlib import Path
from typing import Any

import matplotlib

from distiller.common.files import write_with

matplotlib.use("Agg")

COLOURS = {
    "filterbank": "#9a9a9a",
    "stacked_filterbank": "#5f5f5f",
    "random": "#d9a441",
    "teacher": "#2b6ca3",
    "student": "#c8412b",
}


def save_figure(figure: Any, path: Path) -> Path:
    """Write a PNG atomically and close the figure; returns `path`."""
    from matplotlib import pyplot as plt

    write_with(path, lambda temporary: figure.savefig(temporary, dpi=150))
    plt.close(figure)
    return path
