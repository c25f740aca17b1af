import csv
import json
from pathlib import Path

import pytest

from distiller.common.files import read_columns
from distiller.reports.results import append, row
from upstream.errors import UserError


def report(seed: int, **changes: object) -> dict:
    return {
        "recipe": {"seed": seed}, "command": f"run seed={seed}", "commit": "abc", "finished": "now", "machine": "m",
        "seconds": 60.5, "peak_rss_mb": 900, "parameters": 5, "macs_10s": 7, "skipped": 0,
        "losses": {"train": {"step": 12.0}, "held_out": {"loss": 0.25}},
    } | changes  # fmt: skip


def test_runs_become_rows_once(tmp_path: Path) -> None:
    probe = {"student": dict.fromkeys(("phone", "phone_unseen", "phone_best", "speaker", "speaker_best"), 50.0)}
    for seed, changes in ((1, {}), (2, {"probe": probe, "retention": {"phone": 0.12345, "phone_best": None}})):
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "report.json").write_text(json.dumps(report(seed, **changes)))
    table = tmp_path / "table.csv"
    assert append(table, [row(tmp_path / "1")]) == 1
    assert append(table, [row(tmp_path / "1"), row(tmp_path / "2")]) == 1
    lines = table.read_text().splitlines()
    assert lines[0].split(",")[:9] == [
        "command", "commit", "finished", "machine", "seconds", "peak_rss_mb", "parameters", "macs_10s", "skipped"
    ]  # fmt: skip
    assert lines[1].startswith("run seed=1,abc,now,m,60.5,900,5,7,0,1,12,0.25,")
    assert lines[2].startswith("run seed=2,abc,now,m,60.5,900,5,7,0,2,12,0.25,50.0,50.0,50.0,50.0,50.0,0.123,")
    assert len(lines) == 3
    assert append(table, [row(tmp_path / "1") | {"speed_up": 2.5}]) == 0  # measured later, or once more
    assert append(table, [row(tmp_path / "1") | {"speed_up": 1.5}]) == 0
    with table.open() as file:
        assert [(one["seed"], one["speed_up"]) for one in csv.DictReader(file)] == [("1", "1.5"), ("2", "")]


def test_an_unfinished_run_is_no_row(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a finished run"):
        row(tmp_path)
    assert read_columns(tmp_path / "metrics.csv") == {}
