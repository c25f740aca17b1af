"""Figures of a run, drawn from its tables."""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator, PercentFormatter

from distiller.common.files import read_columns
from distiller.common.plotting import COLOURS, save_figure
from upstream.config import EncoderConfig

FIGURES = ("loss.png", "phones.png", "similarity.png", "remaining_units.png", "distances.png")  # that a run may produce
TERM = "term/"  # prefix of a loss term's column in metrics.csv and held_out.csv
LEGEND = {"frameon": False, "fontsize": "small"}


def loss_curves(output: Path, folders: Sequence[Path]) -> None:
    """OUTPUT/loss.png: the loss of every step, smoothed, the held-out loss, and the terms; a row per stage's folder."""
    size = (10, 3.8 * len(folders))
    figure, rows = plt.subplots(len(folders), 2, figsize=size, layout="constrained", squeeze=False)
    for folder, (losses, terms) in zip(folders, rows, strict=True):
        stage = f", {folder.name} stage" if len(folders) > 1 else ""
        steps, held_out = read_columns(folder / "metrics.csv"), read_columns(folder / "held_out.csv")
        losses.plot(steps["step"], steps["loss"], color=COLOURS["student"], alpha=0.25, linewidth=0.8)
        losses.plot(steps["step"], smooth(steps["loss"]), color=COLOURS["student"], label="training")
        if held_out:
            losses.plot(
                held_out["step"], held_out["loss"], "o-", color=COLOURS["teacher"], markersize=4, label="held out"
            )
        for name in (name for name in steps if name.startswith(TERM)):
            terms.plot(steps["step"], smooth(steps[name]), label=name.removeprefix(TERM).replace("_", " "))
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
    axes.set(xlabel="layer", ylabel="phone accuracy per frame (%)", ylim=(0, 100))
    axes.set_title("Linear phone probe, seen speakers")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    figure.legend(**LEGEND, ncols=5, loc="outside lower center")
    save_figure(figure, output / "phones.png")


def smooth(values: list[float], share: float = 0.02) -> list[float]:
    """Running mean over the last `share` of all values."""
    window = max(1, round(share * len(values)))
    sums = [0.0, *accumulate(values)]
    return [(sums[i + 1] - sums[max(0, i + 1 - window)]) / min(window, i + 1) for i in range(len(values))]


def widths(config: EncoderConfig) -> dict[str, list[int]]:
    """Units per layer: channels of each convolution, heads and inner units of each Transformer layer."""
    return {
        "convolution channels": [channels for channels, _, _ in config.conv_layers],
        "attention heads": [len(heads or ()) for heads in config.attention_heads],
        "feed-forward units": [inner or 0 for inner in config.ffn_dims],
    }


def remaining_units(output: Path, before: EncoderConfig, after: EncoderConfig, joint: Path) -> None:
    """OUTPUT/remaining_units.png: units per layer before and after pruning, and sparsity by step.

    Args:
        joint: the folder of the joint stage, for its metrics.csv.
    """
    figure, panels = plt.subplots(2, 2, figsize=(10, 6.4), layout="constrained")
    sides = zip(widths(before).items(), widths(after).values(), panels.flat, strict=False)
    for (name, teacher), student, axes in sides:
        places = range(1, len(teacher) + 1)
        axes.bar(places, teacher, color="#e4e4e4", label="teacher")
        bars = axes.bar(places, student, color=COLOURS["student"], label="student")
        axes.bar_label(bars, fontsize="small", padding=1)
        share = sum(student) / max(1, sum(teacher))
        axes.set(title=f"{name.capitalize()}: {share:.0%} remaining", ylim=(0, 1.3 * max([*teacher, 1])))
        axes.set_xlabel("convolution" if "channels" in name else "layer")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(**LEGEND, loc="upper left", ncols=2)
    steps, axes = read_columns(joint / "metrics.csv"), panels.flat[3]
    axes.plot(steps["step"], steps["sparsity"], color=COLOURS["student"], label="expected")
    axes.plot(steps["step"], steps["target"], color="#5f5f5f", linestyle="--", linewidth=1.2, label="target")
    axes.set(title="Sparsity", xlabel="optimiser step of the joint stage", ylim=(0, 1))
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.legend(**LEGEND, loc="lower right")
    axes.grid(alpha=0.25)
    save_figure(figure, output / "remaining_units.png")


def distance_curves(output: Path) -> None:
    """OUTPUT/distances.png: the distance of each student layer from the teacher's, from distances.csv."""
    table = read_columns(output / "distances.csv")
    titles = {"l2": "Relative L2 distance", "cosine": "1 - cosine similarity", "cka": "1 - linear CKA"}
    shown = [name for name in titles if name in table]
    figure, panels = plt.subplots(1, len(shown), figsize=(3.6 * len(shown), 3.4), layout="constrained", squeeze=False)
    labels = ["P" if layer == 0 else f"{layer:.0f}" for layer in table["teacher_layer"]]
    for name, axes in zip(shown, panels.flat, strict=True):
        axes.plot(range(len(labels)), table[name], "o-", color=COLOURS["student"], markersize=4)
        axes.set(title=titles[name], xlabel="teacher's layer")
        axes.set_ylim(0, 1.15 * max([value for value in table[name] if value > 0], default=1))  # NaN is not above 0
        axes.set_xticks(range(len(labels)), labels)
        axes.grid(alpha=0.25)
    save_figure(figure, output / "distances.png")
