"""A bar on a terminal; in a log a bounded number of lines, each with the time left."""

import io

import pytest

from distiller.common import progress
from distiller.common.progress import StepBar

ROW = {"loss": 2.0, "audio_seconds": 30.0, "step_seconds": 0.5}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Half a second for each step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)

    def run(self, done: int, steps: int, until: int, seconds: float = 0.5) -> None:
        with StepBar(done, steps, visible=True, file=io.StringIO()) as bar:
            for step in range(done + 1, until + 1):
                self.now += seconds
                bar.update(ROW | {"step": step})


def test_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(file: io.StringIO) -> None:
        with StepBar(1, 40, visible=True, file=file) as bar:
            for step in (2, 3, 4):
                bar.update(ROW | {"step": step})
            raise KeyError

    terminal = Terminal()
    with pytest.raises(KeyError):
        interrupted(terminal)
    assert terminal.getvalue().rpartition("\r")[2].startswith("training:  10%")
    assert terminal.getvalue().endswith("\n")  # so that an error message has a line of its own
    assert capsys.readouterr().out == ""


def test_lines_in_a_log(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Clock(monkeypatch).run(1, 40, 4)
    assert capsys.readouterr().out == (
        "step 2 of 40: loss 2, 60 audio s/s, 0:00:19 left\nstep 4 of 40: loss 2, 60 audio s/s, 0:00:18 left\n"
    )
    Clock(monkeypatch).run(98_990, 100_000, 99_000, seconds=120)  # hours of it, after a resumption
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "step 99000 of 100000: loss 2, 60 audio s/s, 33:20:00 left"


@pytest.mark.parametrize(
    ("steps", "seconds", "lines"), [(1, 1, 1), (7, 1, 7), (60, 1, 20), (100_000, 0.5, 100), (30, 700, 30)]
)
def test_the_number_of_lines(
    steps: int, seconds: float, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Clock(monkeypatch).run(0, steps, steps, seconds)
    out = capsys.readouterr().out
    assert out.count("\n") == lines
    assert out.splitlines()[-1].startswith(f"step {steps} of {steps}: ")
    assert "\r" not in out


def test_a_process_that_does_not_speak(capfd: pytest.CaptureFixture[str]) -> None:
    with StepBar(0, 1, visible=False) as bar:
        bar.update(ROW | {"step": 1})
    assert capfd.readouterr() == ("", "")
