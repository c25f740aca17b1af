"""--gpus: processes side by side. The children are short scripts that take the same command line."""

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
from downstream_recipes.suite import gpus, run
from downstream_recipes.suite.gpus import run_on_gpus, task_command
from downstream_recipes.suite.suite import Result, Suite, keep
from downstream_recipes.tasks.tasks import TASKS

ROOT = Path(superb.__file__).parents[1]
# Records when it began and ended and on which GPU; `sid` fails as superb.py does, `ic` is killed.
CHILD = """
import argparse, json, os, signal, sys, time
from pathlib import Path
parser = argparse.ArgumentParser()
for option in ("tasks", "device", "output", "upstream", "corpora"):
    parser.add_argument(f"--{option}")
parser.add_argument("--no-report", action="store_true")
arguments = parser.parse_args()
output, code, begin = Path(arguments.output), arguments.tasks, time.monotonic()
(output / f"{code}.pid").write_text(str(os.getpid()))
time.sleep(float(arguments.upstream))
row = vars(arguments) | {"begin": begin, "end": time.monotonic(), "gpu": os.environ["CUDA_VISIBLE_DEVICES"]}
with (output / "runs.jsonl").open("a") as file:
    file.write(json.dumps(row) + "\\n")
if code == "sid":
    print("error: sid: no such corpus", file=sys.stderr)
    sys.exit(1)
if code == "ic":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(gpus, "COMMAND", (sys.executable, "-c", CHILD))
    monkeypatch.setattr(gpus, "POLL", 0.02)
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
    suite = Suite("0.3", None, None, output / "corpora.yaml", output, "cuda")  # the child sleeps for its upstream
    failures = run_on_gpus(suite, tasks, ["3", "5"])
    done = runs(output)
    assert sorted(run["tasks"] for run in done) == sorted(task.code for task in tasks)
    assert {run["gpu"] for run in done} == {"3", "5"}
    assert {(run["device"], run["no_report"]) for run in done} == {("cuda", True)}
    at_once = [sum(other["begin"] <= run["begin"] < other["end"] for other in done) for run in done]
    assert max(at_once) == 2
    for gpu in ("3", "5"):  # never two on one
        times = sorted((run["begin"], run["end"]) for run in done if run["gpu"] == gpu)
        assert all(first[1] <= second[0] for first, second in itertools.pairwise(times))
    assert sorted(failures) == [
        f"ic: ended by signal 9 (output in {output / 'ic.log'})",
        "sid: no such corpus",
    ]


def test_finished_tasks_get_no_process(output: Path, miniature: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(Suite, "_describe", lambda suite: {"states": 3, "parameters": 603_136})
    monkeypatch.setattr(run, "write_report", lambda suite, beside: "")
    monkeypatch.setattr(
        run, "run_on_gpus", lambda suite, tasks, gpus: started.append([task.code for task in tasks]) or []
    )
    arguments = ["-u", "starhubert", "--corpora", str(miniature), "--device", "cpu", "--output", str(output)]
    suite = Suite("starhubert", None, None, miniature, output, "cpu")
    keep(suite, TASKS["pr"], Result([], "", "pr", None))
    assert superb.main([*arguments, "--tasks", "pr,ks", "--gpus", "0,1"]) == 0
    assert started == [["ks"]]


def test_a_child_gets_every_setting_of_the_suite(miniature: Path, tmp_path: Path, monkeypatch) -> None:
    suite = Suite("starhubert", "student", "states=all", miniature, tmp_path / "out", "cuda", True, 0.5)
    children: list[tuple[Suite, list[str]]] = []
    monkeypatch.setattr(
        superb, "run_here", lambda suite, tasks: children.append((suite, [task.code for task in tasks])) or []
    )
    monkeypatch.setattr(superb, "chosen_device", lambda device: device)
    words = task_command(suite, TASKS["pr"])
    assert words[1] == superb.__file__
    assert superb.main(words[2:]) == 0
    assert children == [(suite, ["pr"])]


@pytest.mark.parametrize("text", ["0,,1", "0,0", ","])
def test_wrong_gpus_are_a_one_line_error(text: str, miniature: Path, capsys) -> None:
    assert superb.main(["-u", "starhubert", "--corpora", str(miniature), "--gpus", text]) == 2
    message = f"error: --gpus is '{text}', but it must be different comma-separated numbers, such as 0,1\n"
    assert capsys.readouterr().err == message
    assert superb.chosen_gpus("0, 1") == ["0", "1"]


PARENT = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from distiller.common.command import run_command
from downstream_recipes.suite import gpus
from downstream_recipes.suite.suite import Suite
from downstream_recipes.tasks.tasks import TASKS
gpus.COMMAND, gpus.GRACE = (sys.executable, "-c", sys.argv[1]), 1.0
suite = Suite("60", None, None, Path("corpora.yaml"), Path(sys.argv[2]), "cuda")
tasks = [TASKS[code] for code in ("pr", "asr", "ks")]
sys.exit(run_command(lambda: print(gpus.run_on_gpus(suite, tasks, ["0", "1"]))))
"""
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + CHILD


@pytest.mark.parametrize(
    ("number", "code", "child"),
    [
        pytest.param(signal.SIGINT, 130, CHILD, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, CHILD, marks=pytest.mark.slow),
        (signal.SIGTERM, 143, STUBBORN),
    ],
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
    time.sleep(0.2)  # the file exists before its content does
    children = [int((tmp_path / f"{task}.pid").read_text()) for task in ("pr", "asr")]
    parent.send_signal(number)
    _, said = parent.communicate(timeout=60)
    assert parent.returncode == code
    assert said.splitlines()[-1] == "interrupted; run the same command to continue"
    assert "Traceback" not in said
    assert not any(alive(process) for process in children)
    assert not (tmp_path / "ks.pid").exists()
