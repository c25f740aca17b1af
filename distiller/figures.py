"""Figures of a run, drawn from the tables beside them."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

from distiller.files import write_with

FIGURES = ("loss.png", "phones.png", "similarity.png", "left.png", "distances.png")  # that a run may leave
COLOURS = {
    "filterbank": "#9a9a9a",
    "stacked_filterbank": "#5f5f5f",
    "random": "#d9a441",
    "teacher": "#2b6ca3",
    "student": "#c8412b",
}
NOT_TERMS = ("step", "lr", "gradient_norm", "loss", "audio_seconds", "step_seconds")
NOT_TERMS += ("target", "sparsity", "lambda1", "lambda2")  # of pruning


def read_table(path: Path) -> dict[str, list[float]]:
    """The columns of a CSV of numbers; empty when there is no such file."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in (rows[0] if rows else [])}


def loss_curves(output: Path, folders: Sequence[Path]) -> None:
    """OUTPUT/loss.png: the loss of every step, smoothed, the held-out loss, and the terms; a row per stage's folder."""
    size = (10, 3.8 * len(folders))
    figure, rows = plt.subplots(len(folders), 2, figsize=size, layout="constrained", squeeze=False)
    for folder, (losses, terms) in zip(folders, rows, strict=True):
        stage = f", {folder.name} stage" if len(folders) > 1 else ""
        steps, held_out = read_table(folder / "metrics.csv"), read_table(folder / "held_out.csv")
        losses.plot(steps["step"], steps["loss"], color="#c8412b", alpha=0.25, linewidth=0.8)
        losses.plot(steps["step"], smooth(steps["loss"]), color="#c8412b", label="training")
        if held_out:
            losses.plot(held_out["step"], held_out["loss"], "o-", color="#2b6ca3", markersize=4, label="held out")
        for name in (name for name in steps if name not in NOT_TERMS):
            terms.plot(steps["step"], smooth(steps[name]), label=name.replace("_", " "))
        for axes, title in ((losses, f"Loss{stage}"), (terms, f"Terms (unweighted){stage}")):
            positive = all(value > 0 for line in axes.lines for value in line.get_ydata())
            axes.set(title=title, xlabel="optimiser step", yscale="log" if positive else "linear")
            axes.grid(alpha=0.25)
            axes.legend(frameon=False)
    save_figure(figure, output / "loss.png")


def phone_accuracy(output: Path, probe: dict[str, dict[str, Any]]) -> None:
    """OUTPUT/phones.png: phone accuracy by layer of every encoder in the probe, filterbanks as lines."""
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for name, row in probe.items():
        values, label = row["layers"]["phone"], name.replace("_", " ")
        if len(values) == 1:
            axes.axhline(values[0], color=COLOURS[name], linestyle="--", linewidth=1.2, label=label)
        else:
            axes.plot(range(1, len(values) + 1), values, "o-", color=COLOURS[name], markersize=4, label=label)
    axes.set(
        xlabel="layer", ylabel="phone accuracy per frame (%)", title="Linear phone probe, seen speakers", ylim=(0, 100)
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    figure.legend(frameon=False, fontsize="small", ncols=5, loc="outside lower center")
    save_figure(figure, output / "phones.png")


def smooth(values: list[float], share: float = 0.02) -> list[float]:
    """Running mean over the last `share` of all values."""
    window = max(1, round(share * len(values)))
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [(sums[i + 1] - sums[max(0, i + 1 - window)]) / min(window, i + 1) for i in range(len(values))]


def save_figure(figure: Any, path: Path) -> None:
    """Write a PNG whole, and let go of the figure."""
    write_with(path, lambda temporary: figure.savefig(temporary, dpi=150))
    plt.close(figure)
