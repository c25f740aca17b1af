"""Rows of docs/results from finished runs; everything is copied from report.json and distances.csv."""

import csv
import json
from pathlib import Path
from statistics import fmean
from typing import Any

from distiller.common.files import writing
from upstream.errors import UserError

IDENTITY = ("command", "commit", "finished")
FACTS = ("seconds", "peak_rss_mb", "parameters", "macs_10s", "skipped")
PRUNING = ("target", "sparsity", "met")
PROBE = ("phone", "phone_unseen", "phone_best", "speaker", "speaker_best")


def row(output: Path) -> dict[str, Any]:
    """One finished run as a row.

    Raises:
        UserError: the run is not finished.
    """
    path = output / "report.json"
    if not path.exists():
        raise UserError(f"{output} holds no finished run: there is no report.json")
    report = json.loads(path.read_text())
    values = {key: report[key] for key in (*IDENTITY, "machine", *FACTS)} | {"seed": report["recipe"]["seed"]}
    values |= {"steps": int(report["losses"]["train"]["step"])}
    values |= {"held_out_loss": report["losses"].get("held_out", {}).get("loss")}
    for name, accuracies in report.get("probe", {}).items():
        values |= {f"{name}_{key}": accuracies[key] for key in PROBE}
    for key, share in report.get("retention", {}).items():
        values[f"retention_{key}"] = None if share is None else round(share, 3)
    if "pruning" in report:
        values |= {"objective": report["recipe"]["objective"]["name"]}
        values |= {key: report["pruning"][key] for key in PRUNING}
        values |= distances(output / "distances.csv")
    return values


def distances(table: Path) -> dict[str, float]:
    """A pruned student's distances from its teacher: each measure's mean over Transformer layers, and by layer."""
    with table.open(newline="") as file:
        rows = [{key: float(value) for key, value in one.items()} for one in csv.DictReader(file)]
    measures = [key for key in rows[0] if not key.endswith("_layer")]
    means = {f"{key}_distance": fmean(one[key] for one in rows if one["student_layer"]) for key in measures}
    layers = {f"{key}_distance_{one['student_layer']:.0f}": one[key] for key in measures for one in rows}
    return {name: round(value, 5) for name, value in (means | layers).items()}


def append(table: Path, rows: list[dict[str, Any]]) -> int:
    """Add the rows that the table lacks, and to those it has what they now hold; returns the number of rows added."""

    def identity(one: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(one[key] for key in IDENTITY)

    known: list[dict[str, Any]] = []
    if table.exists():
        with table.open(newline="") as file:
            known = list(csv.DictReader(file))
    merged = {identity(one): one for one in known}
    for one in rows:
        merged[identity(one)] = merged.get(identity(one), {}) | one
    columns = list(dict.fromkeys(key for one in merged.values() for key in one))
    with writing(table) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(merged.values())
    return len(merged) - len(known)
