"""Training steps against the time of their multiplications and beside the peer's."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib import pyplot as plt

from distiller.benchmarks.encoders import HUBERT_BASE, SHAPES
from distiller.common.files import read_csv
from distiller.steps import step, training
from distiller.steps.step import LOSS, OURS, PEER, Step, TrainSetting, gflop
from tests.distiller.conftest import TEACHER
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


@pytest.mark.parametrize("method", ["star", pytest.param("skill", marks=pytest.mark.slow)])
def test_training_steps_are_measured_against_their_multiplications(
    method, in_this_process, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(step, "HUBERT_BASE", SMALL)
    shape = ("student.size=XS",) if method == "star" else ()
    setting = TrainSetting(seconds=0.25, rounds=1, threads=torch.get_num_threads(), overrides=shape)
    training.benchmark_training([method], setting, tmp_path)
    ours, peer = read_csv(tmp_path / "train.csv")
    for row, who in ((ours, OURS), (peer, PEER)):
        expected = (method, who, "cpu", "2", "False", "0.25", "32-true", " ".join(shape))
        columns = ("method", "of", "device", "utterances", "padded", "seconds", "precision", "overrides")
        assert tuple(row[column] for column in columns) == expected
        number = {key: float(row[key]) for key in (*training.TIMES, "gflop", "matrix_gflop_per_second")}
        assert number["real_time"] == pytest.approx(0.5 / number["step_seconds"], rel=2e-3)
        floor = number["gflop"] / number["matrix_gflop_per_second"]
        assert number["share_of_floor"] == pytest.approx(floor / number["step_seconds"], rel=2e-3)
        assert number["peak_mb"] > 100
    student = setting.recipe(method).student.shape(SMALL)
    encoders = 4 * (count_macs(SMALL, 4000) + 3 * count_macs(student, 4000)) / 1e9
    assert float(ours["gflop"]) == pytest.approx(encoders * (435 / 427 if method == "star" else 1), rel=1e-3)
    operators = json.loads(ours["operators"])
    assert sum(operators.values()) == pytest.approx(1, abs=0.001)
    assert {"matrix products", "norms", "GELU"} <= set(operators)
    assert plt.imread(tmp_path / "train.png").std() > 0.05
    printed = capsys.readouterr().out
    assert "x real" in printed
    assert "% of our time" in printed


def test_the_paper_scale_step_has_435_gflop() -> None:
    taken = Step(OURS, "star", 2, False, TrainSetting(), HUBERT_BASE)
    assert gflop(taken, SHAPES["starhubert"]) * LOSS["star"] == pytest.approx(435, abs=0.5)


def test_an_override_names_another_teacher(tiny_teacher: Path) -> None:
    assert step.teacher_shape(("seed=2",)) == HUBERT_BASE
    assert step.teacher_shape(("teacher=bundled", f"teacher={tiny_teacher}")) == TEACHER


def test_on_a_gpu_batches_are_padded_too_and_padding_is_no_work() -> None:
    setting = TrainSetting(seconds=1.0, batches=(1, 4), device="cuda")
    assert training.micro_batches(setting) == [(4, True), (1, False), (4, False)]
    assert training.micro_batches(replace(setting, device="cpu")) == [(1, False), (4, False)]
    whole, padded = (Step(OURS, "star", 4, padding, setting, HUBERT_BASE) for padding in (False, True))
    assert padded.lengths().tolist() == [16_000, 15_200, 14_400, 13_600]
    shape = SHAPES["starhubert"]
    assert 0.9 * gflop(whole, shape) < gflop(padded, shape) < 0.94 * gflop(whole, shape)
    batch = replace(padded, setting=replace(setting, device="cpu")).batch()
    assert (batch.waveforms[3, 13_600:] == 0).all()
    assert (batch.waveforms[3, :13_600] != 0).float().mean() > 0.99


def test_a_step_beyond_the_memory_has_a_row_without_times() -> None:
    setting = TrainSetting(rounds=1)
    answers = {
        "prepare": lambda step: step.of == OURS, "take_steps": lambda _: (0.5, 0.25), "matrix_rate": lambda _: 1e3,
        "work_of": lambda _: (100.0, 7), "peak_memory_mb": lambda _: 9.0, "operators": lambda _: {"GELU": 1.0},
    }  # fmt: skip

    def call(work, *arguments):
        return answers[work.__name__](*arguments)

    ours, peer = training.measure_steps({OURS: call, PEER: call}, "star", 2, False, setting, HUBERT_BASE)
    assert (ours["step_seconds"], ours["real_time"], ours["share_of_floor"]) == (0.5, 32.0, 0.2)
    assert [peer[column] for column in training.TIMES] == [None] * 5
    assert peer["operators"] == {}


def test_tables_of_a_gpu_fit_80_columns_and_have_three_digits(capsys, tmp_path: Path) -> None:
    setting = TrainSetting(14.375, (8, 128), device="cuda")
    rows = [
        {"method": method, "of": who, "utterances": size, "padded": padded, "precision": "bf16-mixed"}
        | {"real_time": 12_345.6, "share_of_floor": 0.04321, "step_seconds": 0.000794, "cpu_seconds": 0.07123}
        | {"peak_mb": 138_612.3, "matrix_gflop_per_second": 784_123.4, "floor_seconds": 0.0003}
        | {"operators": {"attention": 0.1, "GELU": 0.9} if who == OURS else {}}
        for method in ("star", "skill")
        for size, padded in training.micro_batches(setting)
        for who in (OURS, PEER)
    ]
    training.print_steps(rows, setting)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "skill 128 padded  ours   12346  0.0432" in " ".join(printed.split("\n"))
    assert "784 TFLOP/s" in " ".join(printed.split())
    for number in ("0.000794", "0.0712", "138612", "10.0", "90.0"):
        assert number in printed
