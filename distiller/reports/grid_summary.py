"""The results of a grid of runs: a summary in Markdown and a figure, beside its table."""

import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.ticker import ScalarFormatter
from scipy import stats

from distiller.common.files import write_text
from distiller.common.plotting import save_figure
from distiller.reports.report import word_columns

Row = dict[str, Any]  # as `results.row`, with cell, method and speeds

CONFIDENCE = 0.95
MEASURES = {  # column -> (title, decimals)
    "student_phone": ("phones, %", 1),
    "student_phone_unseen": ("phones of unseen speakers, %", 1),
    "retention_phone": ("retention of phones", 3),
    "student_speaker": ("speakers, %", 1),
    "cka_distance": ("1 - CKA, mean over layers", 3),
    "l2_distance": ("relative L2, mean over layers", 3),
    "cosine_distance": ("1 - cosine, mean over layers", 3),
}
STUDENT = "student_"  # before the names of a probe's columns
SHOWN = {  # columns of the table of runs
    "sparsity": ("pruned", "{:.1%}"),
    "student_phone": ("phones", "{:.1f}"),
    "student_phone_unseen": ("unseen speakers", "{:.1f}"),
    "retention_phone": ("retention", "{:.3f}"),
    "student_speaker": ("speakers", "{:.1f}"),
    "held_out_loss": ("held-out loss", "{:.4f}"),
    "cka_distance": ("1 - CKA", "{:.3f}"),
    "l2_distance": ("L2", "{:.3f}"),
    "parameters": ("parameters", "{:,}"),
    "macs_10s": ("MACs, 10 s", "{:,}"),
    "real_time_factor": ("real-time factor", "{:.4f}"),
    "speed_up": ("speed-up", "{:.2f}"),
}


def measures(rows: Sequence[Row]) -> dict[str, tuple[str, int]]:
    """MEASURES, and the words of the recordings that the runs were probed on."""
    return MEASURES | {column: (f"{title}, %", 1) for column, title in _words(rows).items()}


def _words(rows: Sequence[Row]) -> dict[str, str]:
    """The columns of a student's words, last layer, and their titles."""
    probed = word_columns([key.removeprefix(STUDENT) for row in rows for key in row if key.startswith(STUDENT)])
    return {f"{STUDENT}{key}": title for key, title in probed.items()}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean and half the width of its t-interval; the latter is not a number for a single value."""
    if len(values) < 2:
        return fmean(values), math.nan
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    return fmean(values), float(quantile * stdev(values) / math.sqrt(len(values)))


def paired_differences(rows: Sequence[Row], target: float, column: str) -> list[tuple[str, str, list[float]]]:
    """For each pair of methods, first - second of every seed that both have at this target, if they prune."""
    values: dict[str, dict[int, float]] = {}
    for row in _at(rows, target):
        if row.get(column) is not None:
            values.setdefault(row["method"], {})[row["seed"]] = row[column]
    pairs = []
    for first, second in combinations(values, 2):
        seeds = sorted(values[first].keys() & values[second].keys())
        if seeds:
            pairs.append((first, second, [values[first][seed] - values[second][seed] for seed in seeds]))
    return pairs


def summarise(table: Path, rows: Sequence[Row], paired: float, command: str, missing: dict[str, str]) -> list[Path]:
    """Write the summary and, if the runs were probed, the figure; returns their paths.

    Args:
        rows: of the finished runs.
        paired: the target at which several seeds are compared.
        command: that made the grid.
        missing: runs that are not finished, and why.
    """
    summary, figure = table.with_suffix(".md"), table.with_suffix(".png")
    probed = all("student_phone" in row for row in rows)
    parts = [_heading(table, rows, command, missing), _runs(rows), _means(rows, paired), _pairs(rows, paired)]
    parts += [f"![phones by size]({figure.name})\n"] if probed else []
    write_text(summary, "\n".join(part for part in parts if part))
    if not probed:
        return [summary]
    accuracy_by_size(figure, rows, paired)
    return [summary, figure]


def _heading(table: Path, rows: Sequence[Row], command: str, missing: dict[str, str]) -> str:
    commits, machines, steps = (", ".join(_values(rows, key)) for key in ("commit", "machine", "steps"))
    unmet = [row["cell"] for row in rows if not row.get("met", True)]
    lines = [
        f"# {table.stem}: {', '.join(_values(rows))}",
        "",
        f"Made by `{command}`; every number is in [{table.name}]({table.name}).",
        f"Commit {commits}; {machines}; {steps} steps, those after pruning where there is any.",
        "",
        "A small teacher and little training: this does not rank the methods at the papers' scale. The held-out",
        "loss is that of each objective and can be compared only within a method.",
        "",
        f"Off their target by more than 1 %: {', '.join(unmet)}."
        if unmet
        else "All runs that prune met their target within 1 %.",
    ]
    if missing:
        lines += ["", "Missing:", "", *(f"- {name}: {reason}" for name, reason in missing.items())]
    return "\n".join(lines) + "\n"


def _values(rows: Sequence[Row], key: str = "method") -> list[str]:
    """The values of a column, each once."""
    return list(dict.fromkeys(str(row[key]) for row in rows))


def _table(heading: str, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A section with a table; nothing without rows."""
    lines = [titles, ["---"] * len(titles), *rows]
    return f"## {heading}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines) if rows else ""


def _at(rows: Sequence[Row], target: float) -> list[Row]:
    """The runs of this target, and those that do not prune."""
    return [row for row in rows if row.get("target", target) == target]


def _runs(rows: Sequence[Row]) -> str:
    columns = SHOWN | {column: (title, "{:.1f}") for column, title in _words(rows).items()}
    shown = [column for column in columns if any(row.get(column) is not None for row in rows)]
    lines = [
        [row["method"], f"{row['target']:g}" if "target" in row else "", str(row["seed"])]
        + ["" if row.get(column) is None else columns[column][1].format(row[column]) for column in shown]
        for row in sorted(rows, key=lambda row: (row.get("target", 0), row["seed"]))
    ]
    return _table("Runs", ["method", "target", "seed", *(columns[column][0] for column in shown)], lines)


def _interval(values: Sequence[float], decimals: int, sign: str = "") -> list[str]:
    """Cells of the mean, its interval and the number of values."""
    mean, half = interval(values)
    around = "" if math.isnan(half) else f"{mean - half:{sign}.{decimals}f} to {mean + half:{sign}.{decimals}f}"
    return [f"{mean:{sign}.{decimals}f}", around, str(len(values))]


def _means(rows: Sequence[Row], paired: float) -> str:
    lines = []
    for method in _values(rows):
        for column, (title, decimals) in measures(rows).items():
            selected = [row.get(column) for row in _at(rows, paired) if row["method"] == method]
            if values := [value for value in selected if value is not None]:
                lines.append([method, title, *_interval(values, decimals)])
    return _table(f"Means at {paired:g}", ["method", "", "mean", "95 % t-interval", "seeds"], lines)


def _pairs(rows: Sequence[Row], paired: float) -> str:
    lines = [
        [first, second, title, *_interval(differences, decimals, "+")]
        for column, (title, decimals) in measures(rows).items()
        for first, second, differences in paired_differences(rows, paired, column)
    ]
    titles = ["first", "second", "", "first - second", "95 % t-interval", "seeds"]
    return _table(f"Paired differences at {paired:g}", titles, lines)


def accuracy_by_size(path: Path, rows: Sequence[Row], paired: float) -> None:
    """Phone accuracy by size: the first seed as a line, all seeds (at `paired`, of those that prune) as an interval."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    first_seed = rows[0]["seed"]
    for index, method in enumerate(_values(rows)):
        runs = [row for row in rows if row["method"] == method]
        line = sorted((row["parameters"] / 1e6, row["student_phone"]) for row in runs if row["seed"] == first_seed)
        axes.plot(*zip(*line, strict=True), "o-", color=f"C{index}", markersize=4, label=f"{method}, seed {first_seed}")
        repeated = _at(runs, paired)
        if len(repeated) > 1:
            mean, half = interval([row["student_phone"] for row in repeated])
            place = fmean(row["parameters"] / 1e6 for row in repeated) * 1.02 ** (index - 1)
            label = f"{method}, {len(repeated)} seeds, 95 %"
            axes.errorbar(place, mean, half, fmt="s", color=f"C{index}", capsize=4, markersize=5, label=label)
    for name, title, style in (("teacher", "teacher", "-"), ("stacked_filterbank", "log-mel, stacked", "--")):
        axes.axhline(rows[0][f"{name}_phone"], color="#5f5f5f", linestyle=style, linewidth=1.2, label=title)
    axes.set(xlabel="parameters of the student, in millions", ylabel="phone accuracy per frame (%)", xscale="log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(ScalarFormatter())
    axes.grid(alpha=0.25)
    figure.legend(frameon=False, fontsize="small", ncols=2, loc="outside lower center")
    save_figure(figure, path)
