"""The results of a grid of runs: a summary in Markdown and a figure, beside its table."""

import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from distiller.common.files import write_text
from distiller.reports.grid_figures import accuracy_by_method, accuracy_by_size
from distiller.reports.intervals import interval
from distiller.reports.report import word_columns

Row = dict[str, Any]  # as `results.row`, with cell, method and speeds

INTERVALS = "Means over seeds, and their 95 % t-intervals"
MEASURES = {  # column -> (title, decimals)
    "student_phone": ("phones, %", 1),
    "student_phone_unseen": ("phones of unseen speakers, %", 1),
    "retention_phone": ("retention of phones", 3),
    "student_speaker": ("speakers, %", 1),
    "cka_distance": ("1 - CKA, mean over layers", 3),
    "l2_distance": ("relative L2, mean over layers", 3),
    "cosine_distance": ("1 - cosine, mean over layers", 3),
}
STUDENT = "student_"  # prefix of a probe's columns
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
    """MEASURES, and the word accuracies on the recordings that the runs were probed on."""
    return MEASURES | {column: (f"{title}, %", 1) for column, title in _words(rows).items()}


def _words(rows: Sequence[Row]) -> dict[str, str]:
    """The columns of a student's word accuracies (last layer), and their titles."""
    probed = word_columns([key.removeprefix(STUDENT) for row in rows for key in row if key.startswith(STUDENT)])
    return {f"{STUDENT}{key}": title for key, title in probed.items()}


def paired_differences(rows: Sequence[Row], target: float, column: str) -> list[tuple[str, str, list[float]]]:
    """For each pair of methods, first - second for every common seed, at this target if they prune."""
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
        command: the one that made the grid.
        missing: runs that are not finished, and why.
    """
    summary, figure = table.with_suffix(".md"), table.with_suffix(".png")
    probed = all("student_phone" in row for row in rows)
    parts = [_heading(table, rows, command, missing), _runs(rows), _means(rows, paired), _pairs(rows, paired)]
    parts += [f"![what the students know]({figure.name})\n"] if probed else []
    write_text(summary, "\n".join(part for part in parts if part))
    if not probed:
        return [summary]
    if len({row.get("target") for row in rows} - {None}) > 1:
        accuracy_by_size(figure, rows, paired)
    else:
        accuracy_by_method(figure, rows, {key: title for key, (title, _) in measures(rows).items()})
    return [summary, figure]


def _heading(table: Path, rows: Sequence[Row], command: str, missing: dict[str, str]) -> str:
    commits, machines, steps = (", ".join(_values(rows, key)) for key in ("commit", "machine", "steps"))
    unmet, prune = [row["cell"] for row in rows if not row.get("met", True)], any(map(_target, rows))
    lines = [
        f"# {table.stem}: {', '.join(_values(rows))}",
        "",
        f"Made by `{command}`; every number is in [{table.name}]({table.name}).",
        f"Commit {commits}; {machines}; {steps} steps{', those after pruning where there is any' if prune else ''}.",
        "",
        "A small teacher and little training: this does not rank the methods at the papers' scale. The held-out",
        "loss is that of each objective and can be compared only within a method.",
    ]
    if prune:
        met = "All runs that prune met their target within 1 %."
        lines += ["", f"Off their target by more than 1 %: {', '.join(unmet)}." if unmet else met]
    if missing:
        lines += ["", "Missing:", "", *(f"- {name}: {reason}" for name, reason in missing.items())]
    return "\n".join(lines) + "\n"


def _values(rows: Sequence[Row], key: str = "method") -> list[str]:
    """The distinct values of a column."""
    return list(dict.fromkeys(str(row[key]) for row in rows))


def _table(heading: str, titles: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> str:
    """A section with a table and a note below it; nothing without rows."""
    lines = [titles, ["---"] * len(titles), *rows]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"## {heading}\n\n" + (f"{note}.\n\n" if note else "") + table if rows else ""


def _target(row: Row) -> float | None:
    return row.get("target")


def _at(rows: Sequence[Row], target: float) -> list[Row]:
    """The runs of this target, and those that do not prune."""
    return [row for row in rows if row.get("target", target) == target]


def _title(text: str, rows: Sequence[Row], target: float) -> str:
    """The text, with the target if runs have one."""
    return f"{text} at {target:g}" if any(map(_target, rows)) else text


def _runs(rows: Sequence[Row]) -> str:
    columns = SHOWN | {column: (title, "{:.1f}") for column, title in _words(rows).items()}
    shown = [column for column in columns if any(row.get(column) is not None for row in rows)]
    lines = [
        [row["method"], f"{row['target']:g}" if "target" in row else "", str(row["seed"])]
        + ["" if row.get(column) is None else columns[column][1].format(row[column]) for column in shown]
        for row in sorted(rows, key=lambda row: (row.get("target", 0), row["seed"]))
    ]
    return _table("Runs", ["method", "target", "seed", *(columns[column][0] for column in shown)], lines)


def _interval(values: Sequence[float], decimals: int, sign: str = "") -> str:
    """A cell: the mean and its interval; in bold a difference (with a sign) whose interval does not contain 0."""
    mean, half = interval(values)
    if math.isnan(half):
        return f"{mean:{sign}.{decimals}f}"
    text = f"{mean:{sign}.{decimals}f} ({mean - half:{sign}.{decimals}f} to {mean + half:{sign}.{decimals}f})"
    return f"**{text}**" if sign and abs(mean) > half else text


def _of(values: int, seeds: int) -> str:
    """A remark for cells with fewer values than their row has seeds."""
    return "" if values == seeds else f", {values} of them"


def _means(rows: Sequence[Row], paired: float) -> str:
    """A row for each method, a column for each measure."""
    shown, lines = _shown(rows, paired), []
    for method in dict.fromkeys(row["method"] for row in _at(rows, paired)):
        own = [row for row in _at(rows, paired) if row["method"] == method]
        cells = []
        for key, (_, decimals) in shown.items():
            values = [row[key] for row in own if row.get(key) is not None]
            cells.append((_interval(values, decimals) + _of(len(values), len(own))) if values else "")
        lines.append([method, str(len(own)), *cells])
    return _table(
        _title("Means", rows, paired), ["method", "seeds", *(title for title, _ in shown.values())], lines, INTERVALS
    )


def _pairs(rows: Sequence[Row], paired: float) -> str:
    """A row for each pair of methods with seeds in common, a column for each measure."""
    shown = _shown(rows, paired)
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for key in shown:
        for first, second, differences in paired_differences(rows, paired, key):
            found.setdefault((first, second), {})[key] = differences
    lines = []
    for pair, by_measure in found.items():
        seeds = max(map(len, by_measure.values()))
        cells = [
            _interval(by_measure[key], decimals, "+") + _of(len(by_measure[key]), seeds) if key in by_measure else ""
            for key, (_, decimals) in shown.items()
        ]
        lines.append([*pair, str(seeds), *cells])
    titles = ["first", "second", "seeds", *(title for title, _ in shown.values())]
    heading = _title("Paired differences, first - second,", rows, paired).removesuffix(",")
    return _table(heading, titles, lines, f"{INTERVALS}; bold: without 0")


def _shown(rows: Sequence[Row], paired: float) -> dict[str, tuple[str, int]]:
    """The measures that at least one run has."""
    return {
        key: how for key, how in measures(rows).items() if any(row.get(key) is not None for row in _at(rows, paired))
    }
