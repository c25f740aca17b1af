"""Progress bars, or lines if the output is a log; nothing else writes to the terminal while bars are shown."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO, TypeVar

from rich.console import Console
from rich.progress import track
from tqdm import tqdm

Item = TypeVar("Item")
LINES = 20  # of a short run
MOST_STEPS = 1000  # between two lines of a long one
LONGEST = 600.0  # seconds between two lines, however few steps lie between


def progress(
    items: Iterable[Item], title: str, total: int | None = None, stderr: TextIO | None = None
) -> Iterable[Item]:
    """The items, with a progress bar on stderr while they are consumed, if stderr is a terminal."""
    file = stderr or sys.stderr
    console = Console(file=file)
    return track(items, title, total, console=console, transient=True, disable=not file.isatty())


@contextmanager
def quiet_stderr() -> Iterator[TextIO]:
    """Silences C libraries (libmpg123 prints about damaged files); yields the real stderr for a progress bar."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        with os.fdopen(saved, "w", closefd=False) as stderr:
            yield stderr
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


class StepBar:
    """The loss, the seconds of audio trained on per second, and the time left.

    Lines go to stdout, a bar to stderr if that is a terminal.

    Args:
        done: steps of earlier processes.
        file: in place of stderr.
    """

    def __init__(self, done: int, steps: int, visible: bool, file: TextIO | None = None) -> None:
        terminal = (file or sys.stderr).isatty()
        self.bar = tqdm(total=steps, initial=done, desc="training", disable=not (visible and terminal), file=file)
        self.every = max(1, min(steps // LINES, MOST_STEPS)) if visible and not terminal else 0
        self.done, self.steps, self.rate = done, steps, 0.0
        self.started = self.printed = time.monotonic()

    def update(self, row: dict[str, float]) -> None:
        """Show a row of metrics.csv."""
        rate = row["audio_seconds"] / max(row["step_seconds"], 1e-9)
        self.rate = rate if not self.rate else 0.9 * self.rate + 0.1 * rate
        self.bar.set_postfix({"loss": f"{row['loss']:.4g}", "audio s/s": f"{self.rate:.0f}"}, refresh=False)
        self.bar.update()
        step, now = int(row["step"]), time.monotonic()
        if self.every and (step % self.every == 0 or now - self.printed > LONGEST):
            left = round((now - self.started) / (step - self.done) * (self.steps - step))  # validation included
            print(
                f"step {step} of {self.steps}: loss {row['loss']:.4g}, {self.rate:.0f} audio s/s, "
                f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left",
                flush=True,
            )
            self.printed = now

    def __enter__(self) -> "StepBar":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()  # ends its line, so that an error message starts a new one
