"""The training loop on noise: its row, and a loop that ends."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from distiller.common.files import read_csv
from distiller.steps.loop import FIRST, LEAST, LoopSetting, benchmark_loop, write_noise
from distiller.training import loop as training_loop


def test_the_loop_is_measured_on_the_data_that_it_reads(tmp_path: Path, tiny_teacher: Path, capsys) -> None:
    loader = training_loop.DataLoader
    small = ("corpus.batch_seconds=4", "trainer.accumulate=2", "corpus.workers=0", "student.size=teacher")
    small += (f"teacher={tiny_teacher}",)
    setting = LoopSetting(seconds=0.01, hours=0.01, threads=torch.get_num_threads(), overrides=small)
    benchmark_loop(["star"], setting, tmp_path)
    (row,) = read_csv(tmp_path / "loop.csv")
    assert (row["method"], row["device"], row["precision"], row["workers"]) == ("star", "cpu", "32-true", "0")
    number = {key: float(row[key]) for key in ("steps", "audio_seconds", "loop_seconds", "real_time", "waited_seconds")}
    assert number["steps"] == LEAST
    assert 0 < number["audio_seconds"] <= LEAST * 2 * 4
    assert number["real_time"] == pytest.approx(number["audio_seconds"] / number["loop_seconds"], rel=2e-3)
    assert 0 < number["waited_seconds"] < number["loop_seconds"]
    assert float(row["first_seconds"]) > 0
    assert training_loop.DataLoader is loader
    table = capsys.readouterr().out.partition("loop.csv written\n")[2]
    assert f"{FIRST} steps" in table
    assert max(map(len, table.splitlines())) <= 80


def test_noise_has_durations_like_librispeech(tmp_path: Path) -> None:
    folder = write_noise(tmp_path / "corpus", 0.1)
    durations = [soundfile.info(path).duration for path in folder.iterdir()]
    assert 360 <= sum(durations) < 360 + 17
    assert 9 < np.mean(durations) < 14
    assert min(durations) >= 1.5
    assert max(durations) <= 17
