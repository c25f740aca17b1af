"""Rows of docs/results from finished runs; everything is copied from report.json and distances.csv."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from distiller.common.files import read_columns, read_csv, write_csv
from upstream.errors import UserError

IDENTITY = ("command", "commit", "finished")
COSTS = ("seconds", "peak_rss_mb", "parameters", "macs_10s", "skipped")
PRUNING = ("target", "sparsity", "met")

Row = dict[str, Any]


def collect(outputs: Sequence[Path], table: Path) -> str:
    """Add finished runs to a table, a row each; returns a line about how many were new.

    Raises:
        UserError: a folder without a finished run, or the table cannot be written.
    """
    added = append(table, [row(output) for output in outputs])
    return f"{added} of {len(outputs)} runs added to {table}"


def row(output: Path) -> Row:
    """The row of one finished run.

    Raises:
        UserError: the run is not finished.
    """
    path = output / "report.json"
    if not path.exists():
        raise UserError(f"{output} is not a finished run: it contains no report.json")
    report = json.loads(path.read_text())
    values = {key: report[key] for key in (*IDENTITY, "machine", *COSTS)} | {"seed": report["recipe"]["seed"]}
    values["steps"] = int(report["losses"]["train"]["step"])
    values["held_out_loss"] = report["losses"].get("held_out", {}).get("loss")
    for name, accuracies in report.get("probe", {}).items():
        values |= {f"{name}_{key}": percent for key, percent in accuracies.items() if key != "layers"}
    for key, share in report.get("retention", {}).items():
        values[f"retention_{key}"] = None if share is None else round(share, 3)
    if "pruning" in report:
        values["objective"] = report["recipe"]["objective"]["name"]
        values |= {key: report["pruning"][key] for key in PRUNING}
        values |= distances(output / "distances.csv")
    return values


def distances(table: Path) -> dict[str, float]:
    """A pruned student's distances from its teacher: each measure's mean over Transformer layers, and by layer."""
    columns = read_columns(table)
    layers = columns.pop("student_layer")
    del columns["teacher_layer"]
    means = {f"{key}_distance": fmean(values[1:]) for key, values in columns.items()}  # the first row is layer 0
    by_layer = {
        f"{key}_distance_{layer:.0f}": value
        for key, values in columns.items()
        for layer, value in zip(layers, values, strict=True)
    }
    return {name: round(value, 5) for name, value in (means | by_layer).items()}


def append(table: Path, rows: Sequence[Row]) -> int:
    """Add new rows to a CSV, and update existing ones; returns the number of rows added."""

    def identity(row: Row) -> tuple[Any, ...]:
        return tuple(row[key] for key in IDENTITY)

    known = read_csv(table)
    merged = {identity(row): row for row in known}
    for row in rows:
        merged[identity(row)] = merged.get(identity(row), {}) | row
    write_csv(table, list(merged.values()))
    return len(merged) - len(known)
