"""The fuzzing campaign itself: it runs, what it tries holds, and it notices what does not."""

import csv
import importlib
import os
import subprocess
import sys
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


@pytest.mark.parametrize("target", ["audio", "manifests", "recipes", "commands", "checkpoints"])
def test_a_few_examples_of_each_target_hold(target: str, worker: Any, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    campaign = worker.Campaign(importlib.import_module(f"fuzz_{target}").target(tmp_path / "base"), tmp_path)
    campaign.run(24, seed=1)
    assert campaign.tries >= 20
    assert list(campaign.failures.values()) == []


def test_each_kind_of_failure_is_made_small(worker: Any, tmp_path: Path) -> None:
    def check(number: int) -> None:
        if number > 1000:
            Path(tmp_path.parent / "outside").touch()
        assert number < 100
        if number > 50:
            raise KeyError(number)

    campaign = worker.Campaign(worker.Target(st.integers(0, 2000), check), tmp_path)
    campaign.run(200, seed=0)
    assert {one.example for one in campaign.failures.values()} == {"100", "51"}
    campaign = worker.Campaign(worker.Target(st.just(0), lambda _: os.mkdir(tmp_path.parent / "outside")), tmp_path)
    campaign.run(1, seed=0)
    assert [kind.split()[0] for kind in campaign.failures] == ["os.mkdir"]


def test_the_script_writes_its_table(tmp_path: Path) -> None:
    table = tmp_path / "fuzz.csv"
    command = [sys.executable, str(HERE / "fuzz.py"), "--targets", "recipes", "--examples", "5", "--table", str(table)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    with table.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["target"], row["examples"], row["failures_found"], row["failures_left"]) == ("recipes", "5", "0", "0")
