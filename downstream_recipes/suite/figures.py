"""Figures of a suite: score against parameters, tasks against HuBERT Base, the layers that each task uses."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.ticker import ScalarFormatter

from distiller.common.plotting import save_figure
from downstream_recipes.adaptation.checkpoints import read_checkpoint
from downstream_recipes.scores.metrics import Row
from downstream_recipes.suite.tables import used_columns

REFERENCE = "HuBERT Base (LS 960)"


def score_against_parameters(rows: Sequence[Row], path: Path) -> Path | None:
    """Overall score over parameters; None when fewer than two rows have both."""
    points = [(row, row.params_m, row.overall) for row in rows if row.params_m and row.overall is not None]
    points.sort(key=lambda point: point[2])
    if len(points) < 2:
        return None
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    heights = _label_heights([overall for *_, overall in points])
    for (row, params, overall), height in zip(points, heights, strict=True):
        marker, size, colour = ("o", 6, "#6b7683") if row.published else ("*", 13, "C3")
        axes.plot(params, overall, marker, ms=size, c=colour)
        line = {"arrowstyle": "-", "color": "#c3c9cf", "lw": 0.6, "relpos": (0, 0.5)}
        at = {"xytext": (1.03, height), "textcoords": "axes fraction", "va": "center"}
        axes.annotate(row.name, (params, overall), **at, fontsize=8, color=colour, arrowprops=line)
    axes.set(xscale="log", xlabel="parameters (M)", ylabel="overall score")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(ScalarFormatter())
    axes.grid(alpha=0.3, which="both")
    return save_figure(figure, path)


def _label_heights(values: Sequence[float], gap: float = 0.06) -> np.ndarray:
    """Label positions (0 to 1) for ascending values beside the axes: near their height, `gap` apart if that fits."""
    bottom, top = 0.02, 0.98
    below = min(gap, (top - bottom) / max(len(values) - 1, 1)) * np.arange(len(values))  # room for the labels below
    wanted = np.interp(values, (values[0], values[-1] + 1e-9), (bottom, top))
    return np.minimum(np.maximum.accumulate(wanted - below) + below, top - below[::-1])


def tasks_as_bars(rows: Sequence[Row], path: Path) -> Path | None:
    """Each task's metrics as points of 100, ours next to HuBERT Base if that is among the rows."""
    shown = [row for row in rows if not row.published or row.name == REFERENCE]
    columns = [column for column in used_columns([row for row in shown if not row.published]) if not column.task.extra]
    if not columns:
        return None
    figure, axes = plt.subplots(figsize=(max(6, 0.9 * len(columns)), 4), layout="constrained")
    width = 0.8 / len(shown)
    for index, row in enumerate(shown):
        values = [column.metric.points(row.scores.get(column.key, np.nan)) for column in columns]
        places = np.arange(len(columns)) + (index - (len(shown) - 1) / 2) * width
        axes.bar(places, values, width, label=row.name, color="#9aa4af" if row.published else f"C{index}")
    axes.set_xticks(range(len(columns)), [column.title.replace(" ", "\n") for column in columns])
    axes.set(ylabel="points (error rates as 100 - x, MTWV x 100)")
    axes.legend(fontsize=8)
    axes.grid(axis="y", alpha=0.3)
    return save_figure(figure, path)


def layer_weights(checkpoint: Path) -> list[float] | None:
    """The weights that a task learned for its sum over the upstream's states; None for a single state."""
    state = read_checkpoint(checkpoint)["Featurizer"]
    return torch.softmax(state["weights"].float(), 0).tolist() if "weights" in state else None


def layers_by_task(weights: Mapping[str, list[float]], path: Path) -> Path | None:
    """Heat map of the learned weights: a row per task, a column per state."""
    if not weights:
        return None
    grid = np.array(list(weights.values()))  # (task, state)
    figure, axes = plt.subplots(figsize=(1.5 + 0.5 * grid.shape[1], 1 + 0.4 * len(grid)), layout="constrained")
    image = axes.imshow(grid, aspect="auto", cmap="viridis", vmin=0)
    axes.set_yticks(range(len(grid)), list(weights))
    axes.set_xticks(range(grid.shape[1]))
    axes.set(xlabel="state")
    figure.colorbar(image, label="weight")
    return save_figure(figure, path)
