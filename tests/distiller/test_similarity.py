"""The command distiller/similarity.py: its files, its tables, and one line per mistake."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from distiller import run, similarity
from distiller.recipes.command_line import recipe_of
from tests.distiller.clustering.shapes import CONFIG
from upstream.checkpoint import save
from upstream.encoder import SpeechEncoder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    encoder = SpeechEncoder(CONFIG)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.4)
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    save(encoder, folder)
    return folder


def test_script(audio, teacher, tmp_path, capsys):
    arguments = ["--teacher", str(teacher), "--corpus", str(audio), "--output", str(tmp_path / "out")]
    assert similarity.main([*arguments, "--clusters", "3,2"]) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"cka.csv", "clusters.json", "clusters-2.json", "similarity.png", "similarity-2.png"}
    assert len(json.loads((tmp_path / "out" / "clusters.json").read_text())["clusters"]) == 3
    assert len(json.loads((tmp_path / "out" / "clusters-2.json").read_text())["clusters"]) == 2
    printed = capsys.readouterr().out
    assert "silhouette" in printed
    assert "'objective.clusters=[[" in printed


def test_the_line_to_try_next_is_skill_on_what_was_compared(audio, tiny_teacher, tmp_path, capsys):
    corpus = tmp_path / "my audio"
    corpus.symlink_to(audio)
    given = ["--teacher", str(tiny_teacher), "--corpus", str(corpus)]
    arguments = [*given, "--output", str(tmp_path / "out"), "--layers=0,1,2", "--zeroth=layer_input", "--clusters=2"]
    assert similarity.main([*arguments, "--debiased"]) == 0
    python, script, *words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert (python, script) == ("python", "distiller/run.py")
    options = run.parser().parse_intermixed_args(words)
    recipe = recipe_of(options)
    clusters = json.loads((tmp_path / "out" / "clusters.json").read_text())["clusters"]
    assert options.output == tmp_path / "out-skill"
    assert (recipe.method, recipe.teacher, recipe.corpus.path) == ("skill", str(tiny_teacher), str(corpus.resolve()))
    objective = recipe.objective
    assert (objective.clusters, objective.layers, objective.layer_zero) == (clusters, [0, 1, 2], "transformer_input")
    assert objective.count == 2  # the recipe's four are more than there are layers


def test_script_finds_the_count_itself(audio, teacher, tmp_path, capsys):
    arguments = ["--teacher", str(teacher), "--corpus", str(audio), "--output", str(tmp_path), "--contiguous"]
    assert similarity.main(arguments) == 0
    count = len(json.loads((tmp_path / "clusters.json").read_text())["clusters"])
    table = [line.split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert [cells[2].strip() for cells in table] == ["2", "3", "4"]
    silhouettes = [float(cells[3]) for cells in table]
    assert count == 2 + int(np.argmax(silhouettes))
    assert [cells[1].strip() for cells in table].index("*") == count - 2


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--clusters", "many"], "--clusters: invalid int list value: 'many'"),
        (["--clusters", "0"], "5 layers cannot be divided into 0 clusters"),
        (["--clusters", "7"], "5 layers cannot be divided into 7 clusters, only into 1 to 5"),
        (
            ["--linkage", "ward"],
            "error: --linkage is 'ward', but it must be one of average, complete, single, weighted",
        ),
        (["--zeroth", "first"], "error: --layer-zero is 'first'"),
        (["--layers", "1,9"], "error: --layers is [1, 9]"),
        (["--stride", "0"], "error: --stride is 0"),
        (["--device", "tpu"], "--device is 'tpu'"),
        (["--device", "meta"], "--device is 'meta', but it must be a device of this machine"),
        (["--seed", "-1"], "--seed is -1, but it must be an integer from 0"),
        (["--output", "/dev/null/x"], "/dev/null/x cannot be written: /dev/null is a file"),
        (["--teacher", "/nowhere"], "/nowhere"),
        (["--corpus", "/nowhere"], "/nowhere"),
        (["--cluster", "3"], "--cluster"),
    ],
)
def test_mistakes_are_one_line(audio, teacher, tmp_path, capsys, options, line):
    arguments = ["--teacher", str(teacher), "--corpus", str(audio), "--output", str(tmp_path / "out"), *options]
    assert similarity.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert line in printed.err
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_is_refused_before_any_work(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("distiller.teachers.teacher.load_teacher", lambda name: pytest.fail("it was loaded"))
    (tmp_path / "file").touch()
    assert similarity.main(["--output", str(tmp_path / "file" / "x")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/file/x cannot be written: {tmp_path}/file is a file\n"


def test_too_little_audio_is_one_line(teacher, tmp_path, capsys):
    (tmp_path / "audio").mkdir()
    generator = np.random.default_rng(0)
    soundfile.write(tmp_path / "audio" / "a.wav", generator.standard_normal(700) * 0.1, 16_000)
    arguments = ["--teacher", str(teacher), "--corpus", str(tmp_path / "audio"), "--output", str(tmp_path / "out")]
    assert similarity.main(arguments) == 2
    assert "frames" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", [(120.0,), (110.0, 7.5)])
def test_all_of_a_corpus_is_used_however_long_its_files(seconds, tiny_teacher, tmp_path, capsys):
    (tmp_path / "audio").mkdir()
    generator = np.random.default_rng(0)
    for index, length in enumerate(seconds):
        samples = generator.standard_normal(round(16_000 * length)) * 0.1
        soundfile.write(tmp_path / "audio" / f"{index}.wav", samples, 16_000)
    arguments = ["--teacher", str(tiny_teacher), "--corpus", str(tmp_path / "audio"), "--output", str(tmp_path / "out")]
    assert similarity.main([*arguments, "--frames=99999"]) == 0
    calibration = json.loads((tmp_path / "out" / "clusters.json").read_text())["calibration"]
    assert calibration["seconds"] == pytest.approx(sum(seconds))
    frames = calibration["frames"]
    assert capsys.readouterr().err.splitlines() == [
        f"warning: the calibration set gives {frames} frames, fewer than the 99999 requested: there is no more audio"
    ]
