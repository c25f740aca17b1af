"""The script for a GPU: every part runs, whatever the others do."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from distiller.common.files import read_csv

SCRIPT = Path(__file__).resolve().parents[3] / "distiller" / "benchmarks" / "gpu.sh"
PARTS = ["correctness", "star", "main", "skill", "loop", "inference", "long"]
# in place of Python: a table for each part; the part named by FAILING fails after it has written its own
FAKE = """\
#!/usr/bin/env bash
while [ $# -gt 0 ]; do [ "$1" = --output ] && out=$2; shift; done
[ -n "${out:-}" ] || exit 0
mkdir -p "$out" && printf 'x\\n1\\n' > "$out/table.csv"
[ "$(basename "$out")" != "${FAILING:-}" ]
"""


def run(tmp_path: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | variables
    return subprocess.run([SCRIPT, "out"], cwd=tmp_path, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("failing", ["", "star", "inference"])
@pytest.mark.parametrize("small", ["", "1"])
def test_a_part_that_fails_does_not_stop_the_others(small: str, failing: str, tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    ended = run(tmp_path, PYTHON=str(fake), FAILING=failing, SMALL=small)
    assert ended.returncode == (1 if failing else 0), ended.stdout + ended.stderr
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == sorted([*(f"{part}.csv" for part in PARTS), "log.txt"])
    assert all(read_csv(out / f"{part}.csv") == [{"x": "1"}] for part in PARTS)
    log = (out / "log.txt").read_text()
    assert all(f"== {part}: exit code {int(part == failing)}" in log for part in PARTS)
    assert log.splitlines()[-1] == (f"failed: {failing}" if failing else "")


def test_the_limits_of_all_parts_are_eight_minutes() -> None:
    limits = [
        int(limit) for limit in re.findall(r"^ .*\b(?:measure|part) [a-z]+ (\d+) ", SCRIPT.read_text(), re.MULTILINE)
    ]
    assert len(limits) == len(PARTS)
    assert sum(limits) <= 480


@pytest.mark.slow
@pytest.mark.parametrize("parts", [["correctness", "long"], ["star", "main", "skill"], ["loop", "inference"]])
def test_every_part_runs_in_small_on_a_cpu(parts: list[str], tmp_path: Path) -> None:
    ended = run(tmp_path, PYTHON=sys.executable, DEVICE="cpu", SMALL="1", PARTS=" ".join(parts))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = {path.stem: read_csv(path) for path in (tmp_path / "out").glob("*.csv")}
    assert sorted(rows) == sorted(parts)
    assert all(row["passed"] == "True" for row in rows.get("correctness", []))
    assert all({row["of"] for row in rows[part]} == {"ours", "peer"} for part in parts if part in ("star", "skill"))
    assert all(float(row["real_time"]) > 0 for part in parts for row in rows[part] if "real_time" in row)
    kinds = [row["kind"] for row in rows.get("inference", [])]
    assert kinds in ([], ["ours", "ours", "transformers", "ours", "transformers"])
    assert all(float(row["chunks_seconds"]) > 0 for row in rows.get("long", []))
