"""Two processes on the CPU, from the command line to the student."""

import csv
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from upstream.checkpoint import load, save
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder

ROOT = Path(__file__).parents[3]
TEACHER = EncoderConfig(
    embed_dim=24, num_heads=2, head_dim=12, attention_heads=((0, 1),) * 2, ffn_dims=(32,) * 2,
    conv_layers=((8, 10, 5), *((8, 3, 2),) * 4, *((8, 2, 2),) * 2), positional_kernel=8, positional_groups=4,
)  # fmt: skip


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """What starts a run of two processes in tmp_path; the number of its steps is left to say."""
    save(SpeechEncoder(TEACHER), tmp_path / "teacher")
    (tmp_path / "noise").mkdir()
    random = np.random.default_rng(0)
    for index in range(20):
        soundfile.write(tmp_path / "noise" / f"{index}.wav", 0.1 * random.standard_normal(4000 + 300 * index), 16_000)
    script = [str(ROOT / "distiller" / "run.py"), "--method", "star", "--teacher", "teacher", "--corpus", "noise"]
    keys = ["student.size=teacher", "corpus.batch_seconds=1", "corpus.workers=0", "probe.enabled=false"]
    keys += ["trainer.checkpoint_every=2", "trainer.validate_every=2"]
    keys += ["trainer.devices=2", "trainer.accelerator=cpu", "trainer.strategy=ddp"]
    return [*script, "--output", "run", *keys]


def environment() -> dict[str, str]:
    launched = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "SLURM_PROCID")
    return {key: value for key, value in os.environ.items() if key not in launched} | {"OMP_NUM_THREADS": "1"}


def steps(output: Path) -> list[int]:
    table = output / "metrics.csv"
    return [int(row["step"]) for row in csv.DictReader(table.read_text().splitlines())] if table.exists() else []


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[], ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]])
def test_two_ranks_make_one_student(launcher: list[str], arguments: list[str], tmp_path: Path) -> None:
    """Started by Lightning or by torchrun; one held-out batch, so that a rank has none of it."""
    command = [sys.executable, *launcher, *arguments, "trainer.steps=4"]
    finished = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=280)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("G MACs for 10 s") == 1
    assert steps(tmp_path / "run") == [1, 2, 3, 4]
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "step-00000004.ckpt", weights_only=True)
    for name, value in load(tmp_path / "run" / "student").state_dict().items():
        assert torch.equal(value, checkpoint["module"][f"student.{name}"])


@pytest.mark.slow
@pytest.mark.parametrize("everyone", [False, True], ids=["the first", "everyone"])
def test_sigterm_ends_two_ranks_and_the_run_continues(everyone: bool, arguments: list[str], tmp_path: Path) -> None:
    """Told to the process that was started, or to all as SLURM does, at any moment of a step or a validation."""
    output, log = tmp_path / "run", tmp_path / "log.txt"
    for delay in (0, 0.13, 0.29):
        done = len(steps(output))
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, *arguments, "trainer.steps=100000"],
                cwd=tmp_path, env=environment(), stdout=file, stderr=file, start_new_session=True,
            )  # fmt: skip
        try:
            deadline = time.monotonic() + 200
            while len(steps(output)) < done + 3:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            time.sleep(delay)
            (os.killpg if everyone else os.kill)(process.pid, signal.SIGTERM)
            assert process.wait(timeout=60) == 143, log.read_text()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        lines = log.read_text().replace("\r", "\n").splitlines()
        assert lines.count("interrupted; run the same command to continue") == 1, lines
        assert "Traceback" not in log.read_text()  # of a worker that ended first
        assert steps(output) == list(range(1, len(steps(output)) + 1))
        assert any((output / "checkpoints").glob("step-*.ckpt"))
