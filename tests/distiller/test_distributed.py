"""Two processes on the CPU, from the command line to the student."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from upstream.checkpoint import load, save
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder

ROOT = Path(__file__).parents[2]
TEACHER = EncoderConfig(
    embed_dim=24, num_heads=2, head_dim=12, attention_heads=((0, 1),) * 2, ffn_dims=(32,) * 2,
    conv_layers=((8, 10, 5), *((8, 3, 2),) * 4, *((8, 2, 2),) * 2), positional_kernel=8, positional_groups=4,
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[], ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]])
def test_two_ranks_make_one_student(launcher: list[str], tmp_path: Path) -> None:
    """Started by Lightning or by torchrun; one held-out batch, so that a rank has none of it."""
    save(SpeechEncoder(TEACHER), tmp_path / "teacher")
    (tmp_path / "noise").mkdir()
    random = np.random.default_rng(0)
    for index in range(20):
        soundfile.write(tmp_path / "noise" / f"{index}.wav", 0.1 * random.standard_normal(4000 + 300 * index), 16_000)
    arguments = ["--method", "star", "--teacher", "teacher", "--corpus", "noise", "--output", "run"]
    keys = ["student.size=teacher", "corpus.batch_seconds=1", "corpus.workers=0", "probe.enabled=false"]
    keys += ["trainer.steps=4", "trainer.checkpoint_every=2", "trainer.validate_every=2"]
    keys += ["trainer.devices=2", "trainer.accelerator=cpu", "trainer.strategy=ddp"]
    command = [sys.executable, *launcher, str(ROOT / "distiller" / "run.py"), *arguments, *keys]
    finished = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=280
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("G MACs for 10 s") == 1
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "3", "4"]
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "step-00000004.ckpt", weights_only=True)
    for name, value in load(tmp_path / "run" / "student").state_dict().items():
        assert torch.equal(value, checkpoint["state_dict"][f"student.{name}"])
