"""Tasks of a suite in separate processes, one per GPU at a time."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from downstream_recipes.suite.suite import Suite, say
from downstream_recipes.tasks.tasks import FOLDER, Task

COMMAND = (sys.executable, str(FOLDER / "superb.py"))
POLL = 2.0  # seconds between polls of the processes
GRACE = 20.0  # seconds that a process may take to end after SIGTERM


def run_on_gpus(suite: Suite, tasks: Sequence[Task], gpus: Sequence[str]) -> list[str]:
    """Each task once, as many at a time as there are GPUs; a line for each that failed.

    No process is left running, even if this ends early.
    """
    waiting, running, failures = list(tasks), dict[str, tuple[Task, subprocess.Popen]](), []
    try:
        while waiting or running:
            for gpu in gpus:
                if gpu not in running and waiting:
                    task = waiting.pop(0)
                    running[gpu] = task, _start(suite, task, gpu)
            time.sleep(POLL)
            for gpu, (task, process) in list(running.items()):
                status = process.poll()
                if status is not None:
                    del running[gpu]
                    say(f"{task.code}: {'failed' if status else 'done'} (GPU {gpu})")
                    failures += [_failure(task, status, suite.output / f"{task.code}.log")] if status else []
    finally:
        _end([process for _, process in running.values()])
    return failures


def task_command(suite: Suite, task: Task) -> list[str]:
    """The command line that runs one task of the suite on the GPU that it sees."""
    options = {
        "--upstream": suite.upstream,
        "--checkpoint": suite.checkpoint,
        "--model-config": suite.model_config,
        "--corpora": suite.corpora_file,
        "--output": suite.output,
        "--tasks": task.code,
        "--feature-cache": suite.feature_cache,
        "--device": "cuda",
    }
    words = [str(word) for option, value in options.items() if value is not None for word in (option, value)]
    return [*COMMAND, *words, *(["--lr-search"] if suite.lr_search else []), "--no-report"]


def _start(suite: Suite, task: Task, gpu: str) -> subprocess.Popen:
    log, environment = suite.output / f"{task.code}.log", os.environ | {"CUDA_VISIBLE_DEVICES": gpu}
    say(f"{task.code}: running on GPU {gpu}, output in {log}")
    with log.open("w") as file:
        return subprocess.Popen(task_command(suite, task), env=environment, stdout=file, stderr=file)


def _failure(task: Task, status: int, log: Path) -> str:
    """The last line of a process that failed."""
    if status < 0:
        return f"{task.code}: ended by signal {-status} (output in {log})"
    lines = log.read_text(errors="replace").splitlines() or ["no output"]
    return f"{task.code}: {lines[-1].removeprefix('error: ').removeprefix(f'{task.code}: ')}"


def _end(processes: Sequence[subprocess.Popen]) -> None:
    """SIGTERM; then SIGKILL for those still running after GRACE seconds, or when another signal ends the waiting."""
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
