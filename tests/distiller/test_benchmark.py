"""The benchmark: rows that add up, one line for what is wrong."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distiller import benchmark
from distiller.benchmarks import training as benchmark_train
from distiller.benchmarks.shapes import HUBERT_BASE, SHAPES
from distiller.benchmarks.training import TrainSetting
from distiller.exporters.transformers import has_only_our_code, to_transformers
from upstream.checkpoint import load, save
from upstream.config import EncoderConfig
from upstream.cost import count_macs
from upstream.encoder import SpeechEncoder


def options(tmp_path: Path, *argv: str) -> list[str]:
    return [*argv, "--seconds", "0.5", "--rounds", "2", "--batches", "1,3", "--output", str(tmp_path / "bench")]


def test_every_encoder_has_a_row_per_batch_size(tiny_teacher, tmp_path, capsys) -> None:
    to_transformers(load(tiny_teacher), tmp_path / "hf", "card")
    argv = options(tmp_path, str(tiny_teacher), f"transformers:{tmp_path / 'hf'}")
    assert benchmark.main(argv) == 0
    printed = capsys.readouterr().out
    assert "RTF x1" in printed
    assert "RTF x3" in printed
    with (tmp_path / "bench" / "benchmark.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["kind"], row["batch"]) for row in rows] == [
        ("ours", "1"),
        ("ours", "3"),
        ("transformers", "1"),
        ("transformers", "3"),
    ]
    encoder = load(tiny_teacher)
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    for row in rows:
        assert float(row["macs_per_second"]) == count_macs(encoder.config, 8000) / 0.5
        assert 0 < float(row["real_time_factor"]) < 10
        assert float(row["peak_mb"]) > 50
        assert float(row["file_mb"]) > 0
        assert (row["threads"], row["rounds"], row["seconds"]) == ("1", "2", "0.5")
    assert [int(row["parameters"]) for row in rows[:2]] == [parameters] * 2
    assert [float(row["speed_up"]) for row in rows[:2]] == [1.0, 1.0]
    for alone, theirs in zip(rows[:2], rows[2:], strict=True):
        ratio = float(alone["real_time_factor"]) / float(theirs["real_time_factor"])
        assert float(theirs["speed_up"]) == pytest.approx(ratio, rel=0.02)
    assert (tmp_path / "bench" / "benchmark.png").stat().st_size > 5000


def test_code_that_is_not_ours_is_not_run(tiny_teacher, tmp_path, capsys) -> None:
    encoder = load(tiny_teacher)
    to_transformers(encoder, tmp_path / "plain", "card")
    narrow = replace(encoder.config, ffn_dims=(32, 16))
    to_transformers(SpeechEncoder(narrow), tmp_path / "own", "card")
    assert benchmark.main(options(tmp_path, f"transformers:{tmp_path / 'own'}")) == 0
    evil = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
    (tmp_path / "plain" / "evil.py").write_text(evil)
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "evil.Model"}
    (tmp_path / "plain" / "config.json").write_text(json.dumps(config))
    assert benchmark.main(options(tmp_path, f"transformers:{tmp_path / 'plain'}")) == 0  # by transformers' own class
    with (tmp_path / "own" / "attention.py").open("a") as file:
        file.write(evil)
    capsys.readouterr()
    assert benchmark.main(options(tmp_path, f"transformers:{tmp_path / 'own'}")) == 2
    assert "its Python files are not those of our export" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("changed", ["nothing", "a file", "another file", "a file below", "another repository"])
def test_our_code_is_that_of_an_export_and_nothing_else(changed, tiny_teacher, tmp_path) -> None:
    encoder = SpeechEncoder(replace(load(tiny_teacher).config, ffn_dims=(32, 16)))
    to_transformers(encoder, tmp_path, "card")
    config = json.loads((tmp_path / "config.json").read_text())
    if changed == "another repository":
        config["auto_map"]["AutoModel"] = "someone/else--" + config["auto_map"]["AutoModel"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    path = {"a file": "config.py", "another file": "more.py", "a file below": "below/config.py"}.get(changed)
    if path is not None:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("")
    assert has_only_our_code(tmp_path) == (changed == "nothing")


def test_a_larger_encoder_takes_longer(tiny_teacher, tmp_path) -> None:
    torch.manual_seed(0)
    layers = ((128, 10, 5), *((128, 3, 2),) * 4, (128, 2, 2), (128, 2, 2))
    heads = (tuple(range(4)),) * 6
    config = EncoderConfig(128, 4, heads, (1024,) * 6, 32, conv_layers=layers, projection=False)
    save(SpeechEncoder(config), tmp_path / "large")
    rows = benchmark.benchmark(benchmark.parse(options(tmp_path, str(tiny_teacher), str(tmp_path / "large"))))
    by_model = {(row["model"], row["batch"]): row for row in rows}
    large = by_model[str(tmp_path / "large"), 3]
    assert large["macs_per_second"] > 5 * by_model[str(tiny_teacher), 3]["macs_per_second"]
    assert large["speed_up"] < 0.9


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["absent/folder/here"], "absent/folder/here does not exist"),
        (["transformers:absent/folder/here"], "absent/folder/here does not exist"),
        (["x", "--batches", "1,a"], "--batches is '1,a'"),
        (["x", "--batches", "0"], "--batches is 0; allowed are sizes from 1 to 1024"),
        (["x", "--threads", "0"], "--threads is 0; allowed is 1 to 1024"),
        (["x", "--seconds", "0"], "--seconds is 0.0; allowed is 0.1 to 600"),
        (["x", "--device", "tpu"], "invalid choice: 'tpu'"),
        ([], "the following arguments are required: PATH"),
        (["x", "--train", "star"], "give PATHs, or --train METHODS, not both"),
        (["--train", "start"], "--train is 'start', but it must be one of star, skill"),
        (["x", "--long", "0"], "--long is 0.0; allowed is 1 to 36000"),
        (["x", "--long", "1", "--device", "cuda"], "--long measures on the CPU: leave out --device cuda"),
        (["--train", "star", "--device", "cuda"], "--train measures on the CPU: leave out --device cuda"),
        (["random:skill", "--output", "file"], "file cannot be the output: file is a file"),
        (["--train", "star", "--output", "file/x"], "file/x cannot be the output: file is a file"),
        (["random:skill", "--long", "1", "--output", "file/x"], "file/x cannot be the output: file is a file"),
        (["random:base"], "the shape after random: is 'base', but it must be one of"),
    ],
)
def test_a_wrong_command_is_one_line(argv, said, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert benchmark.main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    assert not (tmp_path / "exp").exists()


@pytest.mark.parametrize("mode", [[], ["--long", "600"]])
def test_ctrl_c_is_one_line(mode, tiny_teacher, tmp_path) -> None:
    """To the process and to those that it measures in, as from a terminal."""
    argv = [str(tiny_teacher), *mode, "--seconds", "60", "--rounds", "1000", "--output", str(tmp_path / "bench")]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, benchmark.__file__, *argv], stdout=log, stderr=log, start_new_session=True
        )
    deadline = time.monotonic() + 60
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not children.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=30) == 130
    said = (tmp_path / "log").read_text()
    assert "Traceback" not in said
    assert said.splitlines()[-1] == "interrupted; nothing is kept of what was measured"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_one_line(tiny_teacher, capsys) -> None:
    assert benchmark.main([str(tiny_teacher), "--device", "cuda"]) == 2
    assert "--device is cuda, but this machine has only a cpu" in capsys.readouterr().err


def test_random_shapes_are_the_published_ones() -> None:
    with torch.device("meta"):
        counts = {name: sum(p.numel() for p in SpeechEncoder(config).parameters()) for name, config in SHAPES.items()}
    assert (counts["hubert-base"], counts["starhubert"]) == (94_370_944, 22_308_592)
    assert counts["skill"] / 94_697_600 == pytest.approx(0.25, abs=0.005)


def test_a_long_wav_in_chunks_is_near_the_whole(tiny_teacher, tmp_path, capsys) -> None:
    argv = [str(tiny_teacher), "--long", "6", "--chunk", "1", "--overlap", "1", "--output", str(tmp_path)]
    assert benchmark.main(argv) == 0
    with (tmp_path / "long.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert int(row["frames"]) == load(tiny_teacher).config.frame_count(96_000)
    assert 0 < float(row["last_error"]) <= float(row["largest_error"]) < 0.5
    assert float(row["chunks_mb"]) >= float(row["loaded_mb"]) > 50
    assert "6 s in chunks of 1 s with 1 s of overlap" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["star", "skill"])
def test_a_training_step_is_measured_against_its_multiplications(method, tmp_path) -> None:
    """With a small teacher, in this process; the command line takes HuBERT Base in a process of its own."""
    teacher = replace(HUBERT_BASE, embed_dim=96, num_heads=4, head_dim=24, attention_heads=((0, 1, 2, 3),) * 12)
    teacher = replace(teacher, ffn_dims=(64,) * 12, conv_layers=tuple((24, k, s) for _, k, s in teacher.conv_layers))
    setting = TrainSetting(seconds=0.5, rounds=2, threads=torch.get_num_threads())
    row = benchmark_train.measure_step(method, setting, teacher)
    student = teacher if method == "skill" else SHAPES["starhubert"]
    encoders = 4 * (count_macs(teacher, 8000) + 3 * count_macs(student, 8000)) / 1e9
    assert row.gflop == pytest.approx(encoders * (435 / 427 if method == "star" else 1))
    assert row.share == pytest.approx(row.gflop / row.matrix_gflops / row.step_seconds)
    assert sum(row.operators.values()) == pytest.approx(1)
    assert {"matrix products", "convolutions", "norms", "GELU"} <= set(row.operators)
    assert row.peak_mb > 100
    (written,) = benchmark_train.rows_of([row], setting)
    assert (written["method"], written["seconds"], written["peak_mb"]) == (method, 0.5, round(row.peak_mb))
    benchmark_train.draw_steps([row], tmp_path / "train.png")
    assert (tmp_path / "train.png").stat().st_size > 5000


def test_the_paper_scale_step_has_435_gflop() -> None:
    encoders = benchmark_train.gflop(HUBERT_BASE, SHAPES["starhubert"], TrainSetting())
    assert encoders * benchmark_train.LOSS["star"] == pytest.approx(435, abs=0.5)
