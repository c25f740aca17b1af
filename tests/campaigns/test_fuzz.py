"""The fuzzing campaign itself: it runs, what it tries holds, and it notices what does not."""

import csv
import importlib
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

HERE = Path(__file__).resolve().parent


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """fuzz_worker, with the folder of the targets on the path as the script has it."""
    monkeypatch.chdir(tmp_path)  # examples change it
    for folder in (HERE, HERE.parents[1]):
        monkeypatch.syspath_prepend(folder)
    return importlib.import_module("fuzz_worker")


@pytest.fixture
def little_memory(worker: Any) -> Iterator[None]:
    before = [(which, resource.getrlimit(which)) for which in (resource.RLIMIT_DATA, resource.RLIMIT_CORE)]
    worker.limit_memory()
    yield
    for which, limits in before:
        resource.setrlimit(which, limits)


@pytest.mark.parametrize(
    "target",
    ["audio", "manifests", "recipes", "checkpoints", pytest.param("commands", marks=pytest.mark.slow)],
)
def test_a_few_examples_of_each_target_hold(target: str, worker: Any, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    campaign = worker.Campaign(importlib.import_module(f"fuzz_{target}").target(tmp_path / "base"), tmp_path)
    campaign.run(24, seed=1)
    assert campaign.tries >= 20
    assert list(campaign.failures.values()) == []


def test_each_kind_of_failure_is_made_small(worker: Any, tmp_path: Path) -> None:
    def check(number: int) -> None:
        assert number < 100
        if number > 50:
            raise KeyError(number)

    campaign = worker.Campaign(worker.Target(st.integers(0, 2000), check), tmp_path)
    campaign.run(200, seed=0)
    assert {one.example for one in campaign.failures.values()} == {"100", "51"}


@pytest.mark.parametrize(
    ("act", "seen"),
    [
        (lambda outside: outside.write_text("x"), "writes"),
        (lambda outside: outside.rename(outside), "os.rename"),
        (lambda outside: subprocess.run(["true"], check=True), "subprocess.Popen"),
        (lambda outside: socket.getaddrinfo("localhost", 80), "socket.getaddrinfo"),
        (lambda outside: bytearray(2**32), "MemoryError"),
        (lambda outside: any(False for _ in iter(int, 1)), "more"),  # than SECONDS
    ],
)
def test_what_no_example_may_do(
    act: Callable[[Path], Any], seen: str, worker: Any, little_memory: None, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(worker, "SECONDS", 0.5)
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.touch()
    inside.mkdir()
    campaign = worker.Campaign(worker.Target(st.just(0), lambda _: act(outside)), inside)
    campaign.run(1, seed=0)
    assert [kind.split()[0] for kind in campaign.failures] == [seen]


@pytest.mark.parametrize(("ends", "kind"), [("time.sleep(60)", "hang"), ("os.abort()", f"exit code {-6}: ")])
def test_a_process_that_hangs_or_dies_is_a_failure(ends: str, kind: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(HERE)
    fuzz = importlib.import_module("fuzz")
    dies = tmp_path / "worker.py"
    journal = '{"tries": 3, "example": "this one"}'
    dies.write_text(f"import os, time\nopen({str(tmp_path / 'w/journal.json')!r}, 'w').write({journal!r})\n{ends}")
    monkeypatch.setattr(fuzz, "WORKER", dies)
    monkeypatch.setattr(fuzz, "HANG", 1.0)
    outcome = fuzz.explore("audio", 3, 0, tmp_path / "w")
    assert outcome.tries == 3
    assert outcome.failures == [{"kind": kind, "message": "", "example": "this one"}]


@pytest.mark.slow
def test_the_script_writes_its_table(tmp_path: Path) -> None:
    table = tmp_path / "fuzz.csv"
    command = [sys.executable, str(HERE / "fuzz.py"), "--targets", "recipes", "--examples", "5", "--table", str(table)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    with table.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["target"], row["examples"], row["failures"]) == ("recipes", "5", "0")
