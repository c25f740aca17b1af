"""A loss that is not finite is blamed on what has caused it, and on the learning rate only after a step."""

import re
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from distiller.audio.batch import Batch, StepBatch
from distiller.training.step import check_finite
from upstream.checkpoint import load, save
from upstream.errors import UserError


class Module:
    """Networks whose outputs are finite or not after so many steps; the loss is not."""

    def __init__(self, teacher: bool, student: bool, step: int) -> None:
        self.finite, self.step = {"teacher": teacher, "student": student}, step
        self.progress = SimpleNamespace(first_loss=1)

    def finite_outputs(self, batch: Batch) -> dict[str, Tensor]:
        return {name: torch.tensor(finite) for name, finite in self.finite.items()}


def said(precision: str, peak: float = 0.5, **module: Any) -> str:
    """The error of a step whose loss is not finite."""
    strategy = SimpleNamespace(precision=SimpleNamespace(precision=precision))
    fabric: Any = SimpleNamespace(strategy=strategy, world_size=1, device="cpu", autocast=nullcontext)
    batch = StepBatch([Batch(torch.full((1, 400), peak), torch.tensor([400]), ["a"], ["a.wav"], [])], 0, 0)
    broken: Any = Module(**module)
    with pytest.raises(UserError) as error:
        check_finite(fabric, broken, "loss", float("nan"), batch, broken.step + 1)
    return str(error.value)


@pytest.mark.parametrize("step", [0, 7])
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_a_teacher_that_overflows_in_half_precision(precision: str, step: int) -> None:
    line = said(precision, teacher=False, student=True, step=step)
    assert line.startswith(f"the teacher's output is not finite at step {step + 1} (files a.wav)")
    assert f"trainer.precision is {precision}, in which large values overflow; try 32-true" in line
    assert ("the last good checkpoint is kept" in line) == (step > 0)
    assert "optimizer.lr" not in line


@pytest.mark.parametrize(
    ("precision", "teacher", "student", "step", "expected"),
    [
        ("32-true", False, False, 0, "the teacher's output is not finite .* try another teacher"),
        ("16-mixed", True, False, 0, "the student's output is not finite .* trainer.precision is 16-mixed"),
        ("16-mixed", True, True, 0, "the loss is not finite .* trainer.precision is 16-mixed"),
        ("32-true", True, True, 0, "the loss is nan at step 1 .* optimizer.lr is not the cause"),
        ("32-true", True, False, 7, "the loss is nan at step 8 .* try a lower optimizer.lr"),
        ("bf16-mixed", True, False, 7, "the loss is nan at step 8 .* try a lower optimizer.lr"),
    ],
)
def test_what_is_blamed(precision: str, teacher: bool, student: bool, step: int, expected: str) -> None:
    line = said(precision, teacher=teacher, student=student, step=step)
    assert re.search(expected, line), line


def test_audio_that_is_none() -> None:
    line = said("16-mixed", 3e38, teacher=False, student=False, step=0)
    assert "should be within -1 to 1" in line
    assert "trainer.precision" not in line


def test_a_teacher_with_immense_weights(small_run) -> None:
    teacher = load("teacher")
    with torch.no_grad():
        teacher.layers[0].feed_forward.intermediate.weight.fill_(3e38)
    save(teacher, "immense")
    line = small_run.refused("--teacher=immense")
    assert "the teacher's output is not finite at step 1 (files " in line
    assert "try another teacher" in line
    assert not Path("run").exists()  # it has not begun
    assert "trainer.precision is bf16-mixed" in small_run.refused("--teacher=immense", "trainer.precision=bf16-mixed")
