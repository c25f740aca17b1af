"""The figure of a grid of runs: the accuracy of its students, by size or by method."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.ticker import ScalarFormatter
from matplotlib.transforms import ScaledTranslation

from distiller.common.plotting import COLOURS, save_figure
from distiller.reports.intervals import interval

Row = dict[str, Any]  # as in `grid_summary`

APART = 5  # points between the intervals of two methods at one size
REFERENCES = {"teacher": ("teacher", "-"), "stacked_filterbank": ("log-mel, stacked", "--")}  # title and line


def accuracy_by_size(path: Path, rows: Sequence[Row], paired: float) -> None:
    """Phone accuracy by size: the first seed as a line, all seeds (for pruning methods: at `paired`) as an interval."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    first_seed = rows[0]["seed"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for index, method in enumerate(methods):
        runs = [row for row in rows if row["method"] == method]
        line = sorted((row["parameters"] / 1e6, row["student_phone"]) for row in runs if row["seed"] == first_seed)
        axes.plot(*zip(*line, strict=True), "o-", color=f"C{index}", markersize=4, label=f"{method}, seed {first_seed}")
        repeated = [row for row in runs if row.get("target", paired) == paired]
        if len(repeated) > 1:
            mean, half = interval([row["student_phone"] for row in repeated])
            size, _ = interval([row["parameters"] / 1e6 for row in repeated])
            beside = ScaledTranslation(APART * (index - (len(methods) - 1) / 2) / 72, 0, figure.dpi_scale_trans)
            label = f"{method}, {len(repeated)} seeds, 95 %"
            style = {"fmt": "s", "color": f"C{index}", "capsize": 4, "markersize": 5, "label": label}
            axes.errorbar(size, mean, half, transform=axes.transData + beside, **style)
    for name, (title, line_style) in REFERENCES.items():
        axes.axhline(rows[0][f"{name}_phone"], color=COLOURS["stacked_filterbank"], linestyle=line_style, label=title)
    axes.set(xlabel="parameters of the student, in millions", ylabel="phone accuracy per frame (%)", xscale="log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(ScalarFormatter())
    axes.grid(alpha=0.25)
    figure.legend(frameon=False, fontsize="small", ncols=2, loc="outside lower center")
    save_figure(figure, path)


def accuracy_by_method(path: Path, rows: Sequence[Row], titles: Mapping[str, str]) -> None:
    """A panel for each accuracy of the students, a line for each method: every seed, and the mean with its interval.

    Args:
        titles: by column; those of "student_" in percent are shown.
    """
    methods = list(dict.fromkeys(row["method"] for row in rows))
    shown = {key: title for key, title in titles.items() if "%" in title and all(key in row for row in rows)}
    size = (2.2 * len(shown) + 1.6, 0.32 * len(methods) + 1.5)
    figure, panels = plt.subplots(1, len(shown), figsize=size, sharey=True, layout="constrained", squeeze=False)
    for axes, (key, title) in zip(panels[0], shown.items(), strict=True):
        for place, method in enumerate(methods):
            values = [row[key] for row in rows if row["method"] == method]
            mean, half = interval(values)
            axes.plot(values, [place] * len(values), "o", color=COLOURS["student"], alpha=0.35, markersize=4)
            axes.errorbar(mean, place, xerr=half, fmt="|", color=COLOURS["student"], capsize=3, markersize=9)
        for name, (label, line_style) in REFERENCES.items():
            column = key.replace("student", name, 1)
            for value in {row[column] for row in rows if column in row}:  # several where runs have different teachers
                axes.axvline(value, color=COLOURS[name], linestyle=line_style, linewidth=1.2, label=label)
        axes.set(xlabel=title)
        axes.grid(alpha=0.25, axis="x")
    panels[0][0].set_yticks(range(len(methods)), methods)
    panels[0][0].set_ylim(len(methods) - 0.5, -0.5)  # from top to bottom
    handles = dict(zip(*panels[0][0].get_legend_handles_labels()[::-1], strict=True))
    figure.legend(
        handles.values(), handles.keys(), frameon=False, fontsize="small", loc="outside lower center", ncols=2
    )
    save_figure(figure, path)
