"""Training steps against the time of their multiplications."""

import json
from dataclasses import replace

import pytest
import torch
from matplotlib import pyplot as plt

from distiller.benchmarks import training
from distiller.benchmarks.encoders import HUBERT_BASE, SHAPES
from distiller.benchmarks.training import TrainSetting
from distiller.common.files import read_csv
from upstream.cost import count_macs

SMALL = replace(
    HUBERT_BASE,
    embed_dim=96,
    num_heads=4,
    head_dim=24,
    attention_heads=((0, 1, 2, 3),) * 12,
    ffn_dims=(64,) * 12,
    conv_layers=tuple((24, kernel, stride) for _, kernel, stride in HUBERT_BASE.conv_layers),
)


@pytest.mark.parametrize("method", ["star", "skill"])
def test_a_training_step_is_measured_against_its_multiplications(
    method, in_this_process, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(training, "HUBERT_BASE", SMALL)
    setting = TrainSetting(seconds=0.5, rounds=2, threads=torch.get_num_threads())
    row = training.measure_step(method, setting, SMALL)
    student = SMALL if method == "skill" else SHAPES["starhubert"]
    encoders = 4 * (count_macs(SMALL, 8000) + 3 * count_macs(student, 8000)) / 1e9
    assert row["gflop"] == pytest.approx(encoders * (435 / 427 if method == "star" else 1))
    assert row["share_of_floor"] == pytest.approx(row["gflop"] / row["matrix_gflop_per_second"] / row["step_seconds"])
    assert sum(row["operators"].values()) == pytest.approx(1)
    assert {"matrix products", "convolutions", "norms", "GELU"} <= set(row["operators"])
    assert row["peak_mb"] > 100
    monkeypatch.setattr(training, "measure_step", lambda *_: row)
    training.benchmark_training([method], setting, tmp_path)
    (written,) = read_csv(tmp_path / "train.csv")
    assert (written["method"], written["seconds"]) == (method, "0.5")
    assert int(written["peak_mb"]) == round(row["peak_mb"])
    assert sum(json.loads(written["operators"]).values()) == pytest.approx(1, abs=0.001)
    assert plt.imread(tmp_path / "train.png").std() > 0.05
    assert "share of the floor's speed" in capsys.readouterr().out


def test_the_paper_scale_step_has_435_gflop() -> None:
    encoders = training.gflop(HUBERT_BASE, SHAPES["starhubert"], TrainSetting())
    assert encoders * training.LOSS["star"] == pytest.approx(435, abs=0.5)
