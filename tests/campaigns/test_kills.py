"""The campaign itself: a run that goes on where it was ended passes, one that loses something does not."""

import csv
import os
import subprocess
from pathlib import Path

import pytest

from tests.campaigns import kills

COUNTS = """\
import sys, time
from pathlib import Path

path = Path("numbers.csv")
{begin}
for number in range(len(path.read_text().split()) - 1, 6):
    time.sleep(0.1)
    with path.open("a") as file:
        file.write(f"{{number}}\\n")
"""
KEEPS = 'path.exists() or path.write_text("number\\n")'
LOSES = 'path.write_text("number\\n9\\n" if path.exists() else "number\\n")'


def campaign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begin: str) -> tuple[int, list[dict[str, str]]]:
    script = tmp_path / "script.py"
    script.write_text(COUNTS.format(begin=begin))
    subject = kills.Subject("count", (str(script),), ("numbers.csv",), ())
    monkeypatch.setattr(kills, "SUBJECTS", {"count": subject})
    monkeypatch.setattr(kills, "PATIENCE", 5)
    monkeypatch.setattr(kills.Round, "completes", completes)
    table = tmp_path / "table.csv"
    code = kills.main(["--output", str(tmp_path / "runs"), "--table", str(table), "--kills", "4", "--others", "1"])
    with table.open() as file:
        return code, list(csv.DictReader(file))


def completes(self: kills.Round) -> float:
    """As the real one, but makes the cache that the script has no use for."""
    (self.here / "cache").mkdir(exist_ok=True)
    assert self.start().wait() == 0, self.said(20)
    return 0.8


@pytest.mark.slow
def test_a_run_that_goes_on_where_it_was_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, rows = campaign(tmp_path, monkeypatch, KEEPS)
    assert code == 0
    events = [row["event"] for row in rows]
    assert events[0] == "left alone"
    assert {event: events.count(event) for event in kills.END} == {
        "kill -9": 4,
        "SIGTERM": 1,
        "Ctrl-C": 1,
        "kill -9 of a worker": 1,
    }
    assert {row["outcome"] for row in rows if row["event"] == "finishes"} == {"identical"}
    assert {row["exit_code"] for row in rows if row["event"] == "kill -9"} == {"-9"}


@pytest.mark.slow
def test_a_run_that_loses_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, rows = campaign(tmp_path, monkeypatch, LOSES)
    assert code == 1
    assert "different: numbers.csv" in {row["outcome"] for row in rows if row["event"] == "finishes"}


def test_a_worker_that_has_just_ended_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is taken then."""
    kill, tried = os.kill, []

    def late(worker: int, number: int) -> None:
        tried.append(worker)
        if len(tried) == 1:
            raise ProcessLookupError
        kill(worker, number)

    monkeypatch.setattr(os, "kill", late)
    with subprocess.Popen(["sh", "-c", "sleep 60; exit 7"]) as process:
        kills.kill_worker(process)
        assert process.wait(timeout=10) == 7
    assert len(tried) == 2


@pytest.mark.parametrize(
    ("subject", "name", "content", "same", "different"),
    [
        (
            kills.Subject("clocks", (), (), ("*.csv",)),
            "table.csv",
            "step,step_seconds\n1,0.5\n",
            "step,step_seconds\n1,0.6\n",
            "step,step_seconds\n2,0.5\n",
        ),
        (kills.Subject("lists", (), (), (), ("*.xml",)), "list.xml", "x\ny\n", "y\nx\n", "y\nx\nx\n"),
    ],
    ids=lambda value: value.name if isinstance(value, kills.Subject) else "",
)
def test_clocks_and_the_order_of_lists_may_differ_and_nothing_else(
    tmp_path: Path, subject: kills.Subject, name: str, content: str, same: str, different: str
) -> None:
    for folder, text in {"a": content, "b": same, "c": different}.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(text)
    assert kills.differences(subject, tmp_path / "a", tmp_path / "b") == []
    assert kills.differences(subject, tmp_path / "a", tmp_path / "c") == [name]
