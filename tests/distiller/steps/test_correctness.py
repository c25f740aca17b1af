"""Checks of a device: they pass on a CPU, and notice what is wrong."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distiller.common.command import Failed
from distiller.common.files import read_csv
from distiller.steps import correctness
from distiller.steps.correctness import HALF_ROUNDING, Micro, apart, check_device, gradients_apart, losses_apart
from tests.distiller.conftest import TEACHER

STAR = Micro("star", "cpu", 0.5, changes=("student.size=teacher",))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(correctness, "HUBERT_BASE", TEACHER)
    correctness.loss_and_gradients.cache_clear()
    yield
    correctness.loss_and_gradients.cache_clear()


def test_precisions_agree_and_another_loss_does_not(small: None) -> None:
    other = replace(STAR, changes=(*STAR.changes, "objective.scaling=centred"))
    assert correctness.states_apart(0.5, "cpu") == 0
    assert gradients_apart(STAR, replace(STAR, changes=(*STAR.changes, "seed=7"))) == 0
    assert gradients_apart(other, STAR) > 0.1
    assert 0 < losses_apart(replace(STAR, half=True), STAR) < HALF_ROUNDING


def test_what_is_not_finite_is_within_no_limit() -> None:
    assert not apart(torch.tensor([1.0, math.nan]), torch.ones(2)) <= 1e9
    assert not apart(torch.zeros(2), torch.zeros(2)) <= 1e9
    assert apart(torch.tensor([3.0, 4.4]), torch.tensor([3.0, 4.0])) == pytest.approx(0.08)


def test_a_failed_check_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    def broken() -> float:
        raise RuntimeError("an illegal memory access")

    found = [("good", 1e-4, lambda: 1e-5), ("far", 1e-4, lambda: 1e-3), ("broken", 1.0, broken), ("last", 1.0, float)]
    monkeypatch.setattr(correctness, "checks", lambda *_: found)
    with pytest.raises(Failed) as failed:
        check_device(("star",), 1.0, torch.get_num_threads(), "cpu", tmp_path)
    assert [str(line) for line in failed.value.args] == ["far: not within its limit", "broken: not within its limit"]
    passed = [row["passed"] for row in read_csv(tmp_path / "correctness.csv")]
    assert passed == ["True", "False", "False", "True"]
    printed = capsys.readouterr().out
    assert "broken: an illegal memory access" in printed
    assert "1.00e-05" in printed


def test_only_a_gpu_is_asked_whether_the_host_waits() -> None:
    names = {device: [name for name, *_ in correctness.checks(("skill",), 1.0, device)] for device in ("cpu", "cuda")}
    assert set(names["cuda"]) - set(names["cpu"]) == {"skill: errors as the host waits in a step"}
    assert names["cpu"][-1] == "student of a run resumed after SIGKILL"


@pytest.mark.slow
def test_a_run_that_was_killed_has_the_same_student() -> None:
    assert correctness.resumed_apart("cpu") == 0
