"""Every command: Ctrl-C and SIGTERM during its work are one line and 130 or 143, and a refusal leaves no folder."""

import importlib
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
# the module of distiller/, a command line, and the function in which its work begins
WORK = [
    ("run", "--method=star --output=out", "distiller.distillation.distil.distil"),
    ("export", "student --to=onnx --output=out/x.onnx", "distiller.exporters.export.export"),
    ("similarity", "--output=out", "distiller.clustering.compare.compare"),
    ("benchmark", "student --output=out", "distiller.benchmarks.inference.benchmark"),
    ("benchmark", "student --long=1 --output=out", "distiller.benchmarks.long.benchmark_long"),
    ("benchmark", "--train=star --output=out", "distiller.steps.training.benchmark_training"),
    ("benchmark", "--train=star --loop=1 --output=out", "distiller.steps.loop.benchmark_loop"),
    ("finetune", "--model=bundled --corpus=synthetic --output=out", "distiller.finetuning.finetune.finetune"),
    ("transcribe", "model a.wav", "distiller.finetuning.recognizer.open_recognizer"),
    ("grid", "--output=out --table=out/t.csv", "distiller.grid.run_grid"),
    ("probe", "bundled --words=speech --output=out/t.csv", "distiller.teachers.teacher.load_teacher"),
    ("features", "synthetic --output=out", "distiller.extraction.extract.extract_features"),
    ("units", "fit synthetic --model=bundled --layer=1 --output=out", "distiller.codebooks.quantiser.fit_quantiser"),
    ("units", "extract synthetic --units=units --output=out/t", "distiller.codebooks.quantiser.open_quantiser"),
    ("corpus", "prepare corpus --output=out", "distiller.preparation.prepare.prepare"),
    ("corpus", "verify out", "distiller.preparation.prepare.verify"),
    ("corpus", "benchmark", "distiller.benchmarks.reading.benchmark"),
    ("synthesise", "--hours=1 --output=out", "distiller.voices.make.make_speech"),
    ("merge", "student student-2 --output=out", "distiller.exporters.merging.merge"),
    ("results", "out --table=out/t.csv", "distiller.results.collect"),
]
REFUSED = [
    ("run", "--method=star --output=out --teacher=nowhere"),
    ("export", "nowhere --to=onnx --output=out/x.onnx"),
    ("export", "nowhere --to=transformers --output=out"),
    ("similarity", "--output=out --teacher=./nowhere"),
    ("benchmark", "student --rounds=0 --output=out"),
    ("finetune", "--model=bundled --corpus=nowhere --output=out"),
    ("finetune", "--model=nowhere --corpus=synthetic --output=out"),
    ("finetune", "--model=bundled --corpus=synthetic --output=out encoder.frozen=2"),
    ("transcribe", "nowhere a.wav"),
    ("grid", "--output=out --table=out/t.csv trainer.step=1"),
    ("features", "nowhere --output=out"),
    ("features", "synthetic --subsets=x --output=out/features"),
    ("features", "synthetic --model=./nowhere --output=out"),
    ("units", "fit nowhere --model=bundled --layer=1 --output=out"),
    ("units", "fit synthetic --model=bundled --layer=99 --output=out"),
    ("units", "extract synthetic --units=nowhere --output=out/t"),
    ("corpus", "prepare nowhere --output=out"),
    ("probe", "bundled --words=nowhere --output=out/t.csv"),
    ("merge", "nowhere student --output=out"),
    ("results", "nowhere --table=out/t.csv"),
    ("synthesise", "--hours=1 --languages=klingon --output=out"),
]


def command(name: str) -> Any:
    return importlib.import_module(f"distiller.{name}")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize(("name", "words", "work"), WORK)
def test_an_interruption_is_one_line(
    name: str,
    words: str,
    work: str,
    number: signal.Signals,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(work, lambda *_, **__: signal.raise_signal(number))
    assert command(name).main(words.split()) == code
    error = capsys.readouterr().err
    assert error.startswith("interrupted; ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(("name", "words"), REFUSED)
def test_a_refused_command_leaves_no_folder(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(name).main(words.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", sorted({name for name, *_ in WORK}))
def test_a_command_runs_uninstalled_from_any_directory(name: str, tmp_path: Path) -> None:
    script = ROOT / "distiller" / f"{name}.py"
    result = subprocess.run([sys.executable, script, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert f"usage: distiller/{name}.py" in result.stdout
