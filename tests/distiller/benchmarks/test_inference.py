"""Encoders side by side: rows that add up, and each in a process of its own."""

import os
from pathlib import Path

import pytest
import torch
from matplotlib import pyplot as plt

from distiller.benchmarks.inference import Setting, benchmark, describe, measure, run_batch, show
from distiller.benchmarks.processes import fresh_process
from distiller.benchmarks.tables import three
from distiller.common.files import read_csv
from distiller.common.provenance import parameter_count, peak_memory_mb
from distiller.exporters.transformers import to_transformers
from upstream.checkpoint import load, save
from upstream.config import EncoderConfig
from upstream.cost import count_macs
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError

SETTING = Setting(seconds=0.5, batches=(1, 3), rounds=2)


def test_every_encoder_has_a_row_per_batch_size(in_this_process, tiny_teacher, tmp_path, capsys) -> None:
    to_transformers(load(tiny_teacher), tmp_path / "hf", "card")
    benchmark([str(tiny_teacher), f"transformers:{tmp_path / 'hf'}"], SETTING, tmp_path / "bench")
    printed = capsys.readouterr().out
    assert "RTF" in printed
    rows = read_csv(tmp_path / "bench" / "benchmark.csv")
    kinds = [("ours", "1"), ("ours", "3"), ("transformers", "1"), ("transformers", "3")]
    assert [(row["kind"], row["batch"]) for row in rows] == kinds
    encoder = load(tiny_teacher)
    for row in rows:
        assert float(row["macs_per_second"]) == count_macs(encoder.config, 8000) / 0.5
        assert 0 < float(row["real_time_factor"]) < 10
        assert float(row["peak_mb"]) > 50
        assert float(row["file_mb"]) > 0
        assert (row["threads"], row["rounds"], row["seconds"]) == ("1", "2", "0.5")
    assert [int(row["parameters"]) for row in rows[:2]] == [parameter_count(encoder)] * 2
    assert [float(row["speed_up"]) for row in rows[:2]] == [1.0, 1.0]
    for alone, theirs in zip(rows[:2], rows[2:], strict=True):
        ratio = float(alone["real_time_factor"]) / float(theirs["real_time_factor"])
        assert float(theirs["speed_up"]) == pytest.approx(ratio, rel=0.02)
    assert plt.imread(tmp_path / "bench" / "benchmark.png").std() > 0.05


def test_a_table_of_a_gpu_fits_80_columns_and_has_three_digits(capsys) -> None:
    names = ["transformers:random:hubert-base", "facebook/hubert-base-ls960", "exp/star-hubert-960h/student.onnx"]
    names.append("transformers:exp/star-hubert-960h/joint/transformers")
    known = {"parameters": 94_370_944, "macs_per_second": 7_406_652_313.6, "file_mb": 377.51, "peak_mb": 138_612.3}
    rows = [
        {"model": name, "batch": size, "real_time_factor": 0.00031234 / size, "speed_up": 0.82314 * place, **known}
        for place, name in enumerate(names, 1)
        for size in (1, 8, 1024)
    ]
    show(rows, Setting(batches=(1, 8, 1024), device="cuda"))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    first = next(line for line in lines if "94.4" in line)
    assert first.split()[1:] == ["94.4", "7.41", "378", "1", "0.000312", "0.823", "138612"]
    assert sum("3.05e-07" in line for line in lines) == 4
    assert "".join(line.split(" ")[0] for line in lines).endswith("".join(names))  # folded, but whole


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0003123, "0.000312"), (0.00003123, "3.12e-05"), (4.7, "4.70"), (38.649, "38.6"), (99.96, "100"),
        (12_345.6, "12346"), (0.0, "0.00"), (None, "-"), (float("nan"), "-"), (-0.5, "-0.500"),
    ],
)  # fmt: skip
def test_a_number_has_three_digits(value: float | None, text: str) -> None:
    assert three(value) == text


def test_a_larger_encoder_takes_longer(in_this_process, tiny_teacher, tmp_path) -> None:
    torch.manual_seed(0)
    layers = ((128, 10, 5), *((128, 3, 2),) * 4, (128, 2, 2), (128, 2, 2))
    heads = (tuple(range(4)),) * 6
    config = EncoderConfig(128, 4, heads, (1024,) * 6, 32, conv_layers=layers, projection=False)
    save(SpeechEncoder(config), tmp_path / "large")
    rows = measure([str(tiny_teacher), str(tmp_path / "large")], SETTING)
    tiny, large = (row for row in rows if row["batch"] == 3)
    assert large["macs_per_second"] > 5 * tiny["macs_per_second"]
    assert large["speed_up"] < 0.9


@pytest.mark.parametrize("target", ["absent/folder/here", "transformers:absent/folder/here"])
def test_a_target_that_does_not_exist_is_named(target: str, in_this_process) -> None:
    with pytest.raises(UserError, match=r"^absent/folder/here does not exist"):
        measure([target], SETTING)


def test_a_process_answers_with_times_memory_and_errors(tiny_teacher: Path) -> None:
    tiny = str(tiny_teacher)
    with fresh_process("tiny") as call:
        assert call(describe, tiny, SETTING)["kind"] == "ours"
        assert 0 < call(run_batch, tiny, SETTING, 1) < 60
        assert call(peak_memory_mb) > 50
        with pytest.raises(UserError, match=r"^the shape after random: is 'base', but it must be one of"):
            call(describe, "random:base", SETTING)
        for _ in range(2):
            with pytest.raises(UserError, match=r"^tiny: its process ended before it was measured"):
                call(os._exit, 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_device_is_an_error(tiny_teacher, tmp_path) -> None:
    with pytest.raises(UserError, match="--device is cuda, but this machine has only a cpu"):
        benchmark([str(tiny_teacher)], Setting(device="cuda"), tmp_path)
