"""Every task for a few steps with s3prl itself, on tiny corpora of tones."""

import csv
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from downstream_recipes import run_downstream, superb
from downstream_recipes.suite import suite
from downstream_recipes.tasks import command_checks
from downstream_recipes.tasks.tasks import TASKS
from upstream.checkpoint import save
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder

pytestmark = pytest.mark.slow
SCRIPT = Path(superb.__file__)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch, tmp_path) -> None:
    """The miniature settings with two steps each."""
    settings = yaml.safe_load(suite.MINIATURE.read_text())
    for code, values in settings.items():
        save_step = 1 if code == "asv" else 2  # ASV compares its checkpoints
        values["runner"] |= {"total_steps": 2, "log_step": 1, "eval_step": 1, "save_step": save_step}
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setattr(suite, "MINIATURE", tmp_path / "few.yaml")
    pytest.importorskip("s3prl")


@pytest.fixture
def student(tmp_path) -> Path:
    torch.manual_seed(0)
    config = EncoderConfig(
        embed_dim=48,
        num_heads=4,
        head_dim=12,
        attention_heads=((0, 1, 2, 3),) * 2,
        ffn_dims=(64,) * 2,
        conv_layers=((16, 10, 5), (24, 3, 2), *((24, 3, 2),) * 3, (40, 2, 2), (48, 2, 2)),
        projection=False,
        positional_kernel=16,
        positional_groups=4,
    )
    save(SpeechEncoder(config), tmp_path / "student")
    return tmp_path / "student"


def test_the_whole_table(miniature, student, tmp_path, capsys):
    given = ["-u", "starhubert", "-k", str(student), "--corpora", str(miniature), "--device", "cpu"]
    output = tmp_path / "out"
    assert superb.main([*given, "--output", str(output), "--submission"]) == 0, capsys.readouterr().err
    with (output / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = {f"{row['task']} {row['metric']}": float(row["value"]) for row in rows}
    assert len(found) == 11
    assert all(0 <= value <= 400 for value in found.values())  # error rates of nothing learned may exceed 100
    assert (output / "submission" / "predict" / "sd_public").is_dir()
    # -m evaluate of a trained model gives the number that the suite reports
    row = next(row for row in rows if row["task"] == "ic")
    capsys.readouterr()
    assert run_downstream.main([*shlex.split(row["command"])[2:], "--device", "cpu"]) == 0
    printed = float(re.findall(r"^test acc: (\S+)$", capsys.readouterr().out, re.M)[-1])
    assert 100 * printed == pytest.approx(float(row["value"]), abs=1e-3)


def test_the_command_of_a_row_prints_its_number(miniature, student, tmp_path, capsys):
    """For the tasks whose score s3prl leaves to other tools, and by the script itself."""
    given = ["-u", "starhubert", "-k", str(student), "--corpora", str(miniature), "--device", "cpu"]
    output = tmp_path / "out"
    assert superb.main([*given, "--output", str(output), "--tasks", "qbe,sd"]) == 0, capsys.readouterr().err
    with (output / "scores.csv").open() as file:
        rows = {row["task"]: row for row in csv.DictReader(file)}
    for task, pattern in (
        ("qbe", r"^test mtwv: (\S+) \(threshold \S+\)$"),
        ("sd", r"^test lowest der: (\S+) \(median \d+, threshold \S+\)$"),
    ):
        line = [sys.executable, *shlex.split(rows[task]["command"])[1:], "--device", "cpu"]
        run = subprocess.run(line, capture_output=True, text=True, cwd=SCRIPT.parents[1])
        assert run.returncode == 0, run.stderr[-2000:]
        (printed,) = re.findall(pattern, run.stdout, re.M)
        assert float(printed) == pytest.approx(float(rows[task]["value"]), abs=1e-3)


@pytest.mark.skipif(importlib.util.find_spec("asteroid") is None, reason="SE and SS need asteroid, pesq and pystoi")
@pytest.mark.parametrize("code", [code for code, task in TASKS.items() if task.extra])
def test_enhancement_and_separation(miniature, student, tmp_path, code):
    given = ["-u", "dphubert", "-k", str(student), "--corpora", str(miniature), "--device", "cpu", "--tasks", code]
    assert superb.main([*given, "--output", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("code", [code for code, task in TASKS.items() if task.extra])
def test_without_their_packages_one_line_says_what_to_install(miniature, student, tmp_path, code, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith(f"s3prl.downstream.{TASKS[code].downstream}")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(command_checks, "find_spec", lambda name: None)
    given = ["-u", "dphubert", "-k", str(student), "--corpora", str(miniature), "--device", "cpu", "--tasks", code]
    assert superb.main([*given, "--output", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith(f"error: {code}: {TASKS[code].downstream} needs packages")
    assert "uv pip install asteroid pesq pystoi" in said
    assert "Traceback" not in said


@pytest.fixture
def program(miniature, student, tmp_path) -> list[str]:
    """The suite with a few steps of ic and sid, in a process of its own; append the output."""
    code = "import sys; from pathlib import Path; sys.path.insert(0, sys.argv.pop(1)); "
    code += "from downstream_recipes import superb; from downstream_recipes.suite import suite; "
    code += "suite.MINIATURE = Path(sys.argv.pop(1)); "
    code += "sys.exit(superb.main())"
    given = ["-u", "starhubert", "-k", str(student), "--corpora", str(miniature), "--device", "cpu"]
    start = [sys.executable, "-c", code, str(SCRIPT.parents[1]), str(tmp_path / "few.yaml")]
    return [*start, *given, "--tasks", "ic,sid", "--output"]


def values(output: Path) -> list[tuple[str, str, str]]:
    with (output / "scores.csv").open() as file:
        return [(row["task"], row["metric"], row["value"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_ended_in_a_task_it_comes_to_the_same_scores(program, tmp_path, number, status):
    uninterrupted, ended, log = tmp_path / "uninterrupted", tmp_path / "ended", tmp_path / "ended.log"
    with log.open("w") as file:
        process = subprocess.Popen([*program, str(ended)], stdout=file, stderr=file, start_new_session=True)
    deadline = time.monotonic() + 300
    while not list(ended.glob("sid/args_*.yaml")):  # inside the second task
        assert process.poll() is None
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(log.read_text())
        time.sleep(0.05)
    os.killpg(process.pid, number)
    assert process.wait(60) == status
    if number != signal.SIGKILL:
        assert log.read_text().splitlines()[-1] == "interrupted; run the same command to continue"
        assert "Traceback" not in log.read_text()
    kept = (ended / "ic.json").stat().st_mtime_ns
    assert json.loads((ended / "sid.json").read_text())["scores"] is None
    assert subprocess.run([*program, str(ended)], capture_output=True).returncode == 0
    assert (ended / "ic.json").stat().st_mtime_ns == kept
    assert subprocess.run([*program, str(uninterrupted)], capture_output=True).returncode == 0
    assert values(uninterrupted) == values(ended)
