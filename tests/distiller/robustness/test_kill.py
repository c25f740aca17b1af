"""`kill -9` between a run's first utterance and its student, in every stage, and the run that was never killed."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from distiller import run

RECIPE = """\
extends: star
teacher: teacher
student: {size: teacher, dropout: 0.1}  # random numbers that a resumed run has to meet again
corpus: {batch_seconds: 6, workers: 1}
trainer: {steps: 24, validate_every: 6, checkpoint_every: 6, accelerator: cpu, ema: 0.9}
probe: {enabled: false}
"""
PRUNING = """\
extends: skill
teacher: teacher
objective: {count: 2, calibration: {stride: 1, debiased: true}}
student: {dropout: 0.1}
corpus: {path: noise, batch_seconds: 2, workers: 0, validation_share: 0.2}
pruning: {target: 0.4, lr: 0.002}
trainer: {steps: 24, validate_every: 12, checkpoint_every: 6, accelerator: cpu}
probe: {enabled: false}
"""
SHARDS = 20  # of the training split

# Runs a script as `python script` would, and kills the process when something happens for the n-th time: an audit event
# of Python's (https://docs.python.org/3/library/audit_events.html) whose arguments match a pattern.
KILLED_AT = """
import os, re, runpy, signal, sys
event, pattern, times = sys.argv[1], re.compile(sys.argv[2]), int(sys.argv[3])
sys.argv[:] = sys.argv[4:]

def audit(name, arguments):
    global times
    if name == event and pattern.search(str(arguments)):
        times -= 1
        if times == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(audit)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Command:
    """`python distiller/run.py --recipe smoke.yaml` in a folder that has its own cache."""

    ARGV = (run.__file__, "--recipe", "smoke.yaml", "--output", "run")

    def __init__(self, folder: Path, teacher: Path, recipe: str = RECIPE) -> None:
        self.folder, self.output, self.cache = folder, folder / "run", folder / "cache"
        folder.mkdir()
        (folder / "teacher").symlink_to(teacher)
        (folder / "smoke.yaml").write_text(recipe)

    def start(self, *python: str) -> subprocess.Popen:
        environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "LOCAL_RANK")}
        environment |= {"SPEECH_DISTILLER_CACHE": str(self.cache), "OMP_NUM_THREADS": "1"}
        with (self.folder / "log.txt").open("ab") as log:  # no pipe: orphaned workers would keep it open
            return subprocess.Popen(
                [sys.executable, *python, *self.ARGV], cwd=self.folder, env=environment, stdout=log, stderr=log
            )

    def completes(self) -> None:
        assert self.start().wait(timeout=280) == 0, self.log()

    def killed_at(self, event: str, pattern: str, times: int = 1) -> None:
        assert self.start("-c", KILLED_AT, event, pattern, str(times)).wait(timeout=280) == -signal.SIGKILL, self.log()

    def log(self) -> str:
        return (self.folder / "log.txt").read_text(errors="replace")[-3000:]

    def shards(self) -> list[Path]:
        return list((self.cache / "synthesis/train").glob("[0-9]*"))

    def files(self) -> set[str]:
        """Everything in the output and in the cache, but for TensorBoard's files, one for each start."""
        paths = [path for folder in (self.output, self.cache) for path in folder.rglob("*")]
        return {str(path.relative_to(self.folder)) for path in paths if "tfevents" not in path.name}

    def checkpoints(self, stage: str = "") -> list[str]:
        return sorted(path.name for path in (self.output / stage / "checkpoints").glob("*"))

    def steps(self, stage: str = "") -> list[dict[str, str]]:
        """metrics.csv without what is measured in seconds of a clock."""
        with (self.output / stage / "metrics.csv").open() as file:
            return [{key: row[key] for key in row if key != "step_seconds"} for row in csv.DictReader(file)]


def same(killed: Command, whole: Command, *names: str) -> None:
    """The two runs left the same files, these of them with the same content."""
    assert killed.files() == whole.files()
    for name in names:
        assert (killed.output / name).read_bytes() == (whole.output / name).read_bytes(), name
    reports = [json.loads((command.output / "report.json").read_text()) for command in (killed, whole)]
    assert reports[0]["losses"] == reports[1]["losses"]


@pytest.mark.slow
def test_five_kills_change_nothing(tmp_path: Path, tiny_teacher: Path) -> None:
    killed, whole = Command(tmp_path / "killed", tiny_teacher), Command(tmp_path / "whole", tiny_teacher)

    process = killed.start()
    while len(killed.shards()) < 3:  # in the middle of the training split
        assert process.poll() is None, killed.log()
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert len(killed.shards()) < SHARDS
    assert killed.checkpoints() == []

    killed.killed_at("open", r"\.best\.writing.*model\.safetensors")  # in the first validation, before a checkpoint
    assert len(killed.shards()) == SHARDS
    assert (killed.output / ".best.writing/config.json").exists()
    assert killed.checkpoints() == []

    killed.killed_at("open", r"metrics\.csv.*'a'", times=9)  # between two checkpoints
    assert [row["step"] for row in killed.steps()] == [str(step) for step in range(1, 9)]
    assert killed.checkpoints() == ["step-00000006.ckpt"]

    killed.killed_at("os.rename", r"/step-00000012\.ckpt")  # a checkpoint that does not have its name yet
    assert len(killed.checkpoints()) == 2
    assert killed.checkpoints()[0].startswith(".part-")
    assert killed.checkpoints()[1] == "step-00000006.ckpt"

    killed.killed_at("open", r"\.student\.writing.*model\.safetensors")
    assert killed.checkpoints() == ["step-00000018.ckpt", "step-00000024.ckpt"]
    assert (killed.output / ".student.writing").exists()
    assert not (killed.output / "student").exists()

    killed.completes()
    whole.completes()
    same(killed, whole, "student/model.safetensors", "student/config.json", "best/model.safetensors", "held_out.csv")
    for path in (name for name in whole.files() if name.endswith((".flac", "cuts.jsonl"))):
        assert (killed.folder / path).read_bytes() == (whole.folder / path).read_bytes(), path
    assert [row["step"] for row in whole.steps()] == [str(step) for step in range(1, 25)]
    assert killed.steps() == whole.steps()


@pytest.mark.slow
def test_kills_in_the_stages_of_pruning_and_between_them_change_nothing(tmp_path: Path, tiny_teacher: Path) -> None:
    killed, whole = (Command(tmp_path / name, tiny_teacher, PRUNING) for name in ("killed", "whole"))
    random = np.random.default_rng(0)
    (tmp_path / "noise").mkdir()
    for index in range(16):
        soundfile.write(tmp_path / f"noise/{index:02}.wav", 0.1 * random.standard_normal(4000 + 250 * index), 16_000)
    for command in (killed, whole):
        (command.folder / "noise").symlink_to(tmp_path / "noise")

    killed.killed_at("open", r"joint/metrics\.csv.*'a'", times=9)
    assert [row["step"] for row in killed.steps("joint")] == [str(step) for step in range(1, 9)]
    assert killed.checkpoints("joint") == ["step-00000006.ckpt"]
    clusters = (killed.output / "clusters.json").read_bytes()

    killed.killed_at("open", r"\.pruned\.writing.*model\.safetensors")  # the joint stage is done, the cut not written
    assert killed.checkpoints("joint") == ["step-00000018.ckpt", "step-00000024.ckpt"]
    assert not (killed.output / "pruned").exists()

    killed.killed_at("open", r"final/metrics\.csv.*'a'")  # the cut is there, the final stage has no step
    assert (killed.output / "pruned/config.json").exists()
    assert killed.checkpoints("final") == []

    killed.killed_at("open", r"final/metrics\.csv.*'a'", times=9)
    assert [row["step"] for row in killed.steps("final")] == [str(step) for step in range(1, 9)]
    assert killed.checkpoints("final") == ["step-00000006.ckpt"]

    killed.completes()
    whole.completes()
    stages = [f"{folder}/model.safetensors" for folder in ("pruned", "final/best", "student")]
    tables = ["clusters.json", "joint/held_out.csv", "final/held_out.csv", "distances.csv"]
    same(killed, whole, *stages, *tables, "pruned/objective.safetensors", "student/config.json")
    assert (whole.output / "clusters.json").read_bytes() == clusters
    for stage, steps in (("joint", 24), ("final", 12)):
        assert [row["step"] for row in whole.steps(stage)] == [str(step) for step in range(1, steps + 1)]
        assert killed.steps(stage) == whole.steps(stage)
