"""--gpus: processes side by side. The children are short scripts that read the same command line."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from downstream_recipes import superb
from downstream_recipes.suite import gpus as side_by_side
from downstream_recipes.suite.gpus import run_on_gpus
from downstream_recipes.tasks.tasks import TASKS
from upstream.errors import UserError

ROOT = Path(superb.__file__).parents[1]
# Notes when it began and ended and on which GPU; `sid` fails as superb.py does, `ic` as an operating system may end it.
CHILD = """
import argparse, json, os, signal, sys, time
from pathlib import Path
parser = argparse.ArgumentParser()
for flag in ("--tasks", "--gpus", "--device", "--output", "--seconds"):
    parser.add_argument(flag)
parser.add_argument("--no-report", action="store_true")
given = parser.parse_args()
output, code, begin = Path(given.output), given.tasks, time.monotonic()
(output / f"{code}.pid").write_text(str(os.getpid()))
time.sleep(float(given.seconds))
row = vars(given) | {"begin": begin, "end": time.monotonic(), "gpu": os.environ["CUDA_VISIBLE_DEVICES"]}
with (output / "runs.jsonl").open("a") as file:
    file.write(json.dumps(row) + "\\n")
if code == "sid":
    print("superb.py: sid: no such corpus", file=sys.stderr)
    sys.exit(1)
if code == "ic":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(side_by_side, "COMMAND", (sys.executable, "-c", CHILD))
    monkeypatch.setattr(side_by_side, "POLL", 0.02)
    return tmp_path


def runs(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "runs.jsonl").read_text().splitlines()]


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_every_task_runs_once_and_as_many_at_a_time_as_there_are_gpus(output: Path) -> None:
    tasks = [TASKS[code] for code in ("pr", "asr", "ks", "sid", "ic")]
    argv = ["--gpus", "3,5", "--output", str(output), "--tasks", "all", "--overwrite", "--seconds", "0.3"]
    failures = run_on_gpus(output, tasks, ["3", "5"], argv)
    done = runs(output)
    assert sorted(run["tasks"] for run in done) == sorted(task.code for task in tasks)
    assert {run["gpu"] for run in done} == {"3", "5"}
    assert {(run["gpus"], run["device"], run["no_report"]) for run in done} == {("", "cuda", True)}
    at_once = [sum(other["begin"] <= run["begin"] < other["end"] for other in done) for run in done]
    assert max(at_once) == 2
    for gpu in ("3", "5"):  # never two on one
        own = sorted((run["begin"], run["end"]) for run in done if run["gpu"] == gpu)
        assert all(first[1] <= second[0] for first, second in itertools.pairwise(own))
    assert sorted(failures) == [
        f"ic: ended by signal 9 (all of it in {output / 'ic.log'})",
        "sid: no such corpus",
    ]


def test_finished_tasks_get_no_process(output: Path, miniature: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(superb.Suite, "_describe", lambda suite: {"states": 3, "parameters": 603_136})
    monkeypatch.setattr(superb, "write_report", lambda suite, beside: "")
    monkeypatch.setattr(
        superb, "run_on_gpus", lambda output, tasks, gpus, argv: started.append([task.code for task in tasks]) or []
    )
    given = ["-u", "starhubert", "--corpora", str(miniature), "--device", "cpu", "--output", str(output)]
    suite = superb.open_suite(superb.parse_arguments(given), output)
    superb.keep(suite, TASKS["pr"], [])
    assert superb.main([*given, "--tasks", "pr,ks", "--gpus", "0,1"]) == 0
    assert started == [["ks"]]


@pytest.mark.parametrize("text", ["0,,1", "0,0", ","])
def test_wrong_gpus_are_one_sentence(text: str) -> None:
    with pytest.raises(UserError, match=f"^--gpus {text}: numbers with commas"):
        superb.chosen_gpus(text)
    assert superb.chosen_gpus("0, 1") == ["0", "1"]


PARENT = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from distiller.run import run_command
from downstream_recipes import side_by_side
from downstream_recipes.tasks import TASKS
side_by_side.COMMAND, side_by_side.GRACE = (sys.executable, "-c", sys.argv[1]), 1.0
output = Path(sys.argv[2])
tasks = [TASKS[code] for code in ("pr", "asr", "ks")]
work = lambda: print(side_by_side.run_on_gpus(output, tasks, ["0", "1"], ["--output", str(output), "--seconds", "60"]))
sys.exit(run_command(work))
"""
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + CHILD


@pytest.mark.parametrize(
    ("number", "code", "child"),
    [(signal.SIGINT, 130, CHILD), (signal.SIGTERM, 143, CHILD), (signal.SIGTERM, 143, STUBBORN)],
)
def test_interrupted_it_leaves_no_process_behind(tmp_path: Path, number: int, code: int, child: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, child, str(tmp_path)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not all((tmp_path / f"{task}.pid").exists() for task in ("pr", "asr")):
        assert parent.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.2)  # the file is there before its content is
    children = [int((tmp_path / f"{task}.pid").read_text()) for task in ("pr", "asr")]
    parent.send_signal(number)
    _, said = parent.communicate(timeout=60)
    assert parent.returncode == code
    assert said.splitlines()[-1] == "interrupted; run the same command to continue"
    assert "Traceback" not in said
    assert not any(alive(process) for process in children)
    assert not (tmp_path / "ks.pid").exists()
