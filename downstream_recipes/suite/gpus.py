"""Tasks of a suite in processes of their own, one on each GPU at a time."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from downstream_recipes.suite.suite import say
from downstream_recipes.tasks.tasks import Task

COMMAND = (sys.executable, str(Path(__file__).parents[1] / "superb.py"))
POLL = 2.0  # seconds between looks at the processes
GRACE = 20.0  # seconds that a process has to end when it is asked to


@dataclass(frozen=True)
class Running:
    """A task at work, and where its output goes."""

    task: Task
    process: subprocess.Popen
    log: Path


def run_on_gpus(output: Path, tasks: Sequence[Task], gpus: Sequence[str], argv: Sequence[str]) -> list[str]:
    """Each task once, as many at a time as there are GPUs; what went wrong, a line each.

    Nothing is left running when this ends early.

    Args:
        argv: the suite's command line, which every process gets for its task alone.
    """
    waiting, running, failures = list(tasks), dict[str, Running](), []
    try:
        while waiting or running:
            for gpu in gpus:
                if gpu not in running and waiting:
                    running[gpu] = _start(output, waiting.pop(0), gpu, argv)
            time.sleep(POLL)
            for gpu, one in list(running.items()):
                if one.process.poll() is not None:
                    del running[gpu]
                    failures += _failure(one)
                    say(f"{one.task.code}: {'failed' if one.process.returncode else 'done'} (GPU {gpu})")
    finally:
        _end([one.process for one in running.values()])
    return failures


def _start(output: Path, task: Task, gpu: str, argv: Sequence[str]) -> Running:
    log = output / f"{task.code}.log"
    say(f"{task.code}: running on GPU {gpu}, output in {log}")
    shared = [text for text in argv if text != "--overwrite"]  # has been done
    own = ["--tasks", task.code, "--gpus", "", "--no-report", "--device", "cuda"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": gpu}
    with log.open("w") as file:
        process = subprocess.Popen([*COMMAND, *shared, *own], env=environment, stdout=file, stderr=file)
    return Running(task, process, log)


def _failure(ended: Running) -> list[str]:
    """The last line of a process that failed; its own name and the task's are said by its parent."""
    code, status = ended.task.code, ended.process.returncode
    if status == 0:
        return []
    if status < 0:
        return [f"{code}: ended by signal {-status} (all of it in {ended.log})"]
    lines = ended.log.read_text(errors="replace").splitlines() or ["no output"]
    return [f"{code}: {lines[-1].removeprefix('superb.py: ').removeprefix(f'{code}: ')}"]


def _end(processes: Iterable[subprocess.Popen]) -> None:
    """SIGTERM; SIGKILL for what goes on after GRACE seconds, or when another signal ends the waiting."""
    processes = list(processes)
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE
    try:
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
            process.wait()
