"""The command distiller/probe.py: its table, and one line per mistake."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from distiller import probe
from distiller.common.files import read_csv
from distiller.probes.phones import Probe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two groups with the same three words."""
    random = np.random.default_rng(0)
    for group in ("studio", "telephone"):
        (tmp_path / "pairs" / group).mkdir(parents=True)
        for word in ("one", "two", "three"):
            soundfile.write(tmp_path / "pairs" / group / f"{word}.wav", 0.1 * random.standard_normal(4000), 16_000)
    return tmp_path / "pairs"


def test_every_layer_and_both_filterbanks_are_in_the_table(folder, tiny_teacher, tmp_path, capsys):
    (folder / "studio" / "broken.wav").write_bytes(b"RIFF....")
    output = tmp_path / "exp" / "table.csv"
    arguments = [str(tiny_teacher), "--words", str(folder), "--classes", str(folder), "--output", str(output)]
    assert probe.main(arguments) == 0
    rows = read_csv(output)
    measures = {"word", "studio to telephone", "telephone to studio", "linear", "centroid"}
    assert {row["measure"] for row in rows} == measures
    layers = {
        model: {row["layer"] for row in rows if row["model"] == model} for model in {row["model"] for row in rows}
    }
    assert layers == {"log-mel": {"1"}, "log-mel, ±12 frames": {"1"}, str(tiny_teacher): {"1", "2"}}
    assert len(rows) == len(measures) * 4
    assert [Path(row["path"]).name for row in read_csv(output.with_suffix(".skipped.csv"))] == ["broken.wav"]
    assert "1 file set aside" in capsys.readouterr().out


def test_degraded_speech_has_rows_of_its_own(folder, tiny_teacher, tmp_path):
    output = tmp_path / "table.csv"
    arguments = [str(tiny_teacher), "--words", str(folder), "--degraded", "10,telephone", "--output", str(output)]
    assert probe.main(arguments) == 0
    rows = read_csv(output)
    assert {row["heard"] for row in rows} == {"clean", "10 dB", "telephone"}
    assert len(rows) == 3 * 3 * 4


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["bundled"], "give --words FOLDER, --classes FOLDER, --abx FOLDER or --synthetic"),
        (["--words", "pairs"], "the following arguments are required: MODEL (see --help)"),
        (["bundled", "--words", "nowhere"], "nowhere does not exist"),
        (["bundled", "--words", "pairs/studio"], "pairs/studio must contain the same WORD as GROUP/WORD.flac in two"),
        (["bundled", "--classes", "pairs/studio"], "pairs/studio must contain CLASS/NAME.flac or CLASS/GROUP/"),
        (["bundled", "--words", "empty"], "empty holds no audio"),
        (["./nowhere", "--words", "pairs"], "nowhere"),
        (["bundled", "--words", "pairs", "--output", "out"], "--output is 'out', but it must be a .csv file"),
        (
            ["bundled", "--words", "pairs", "--degraded", "10,cafe"],
            "--degraded is 'cafe', but it must be telephone, room",
        ),
        (["bundled", "--classes", "pairs", "--degraded", "10"], "--degraded is '10', but it must be left out with"),
        (["bundled", "--word", "pairs"], "option --word does not exist; did you mean --words?"),
    ],
)
def test_a_mistake_is_one_line(arguments, line, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder.parent)
    Path("empty").mkdir()
    assert probe.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert line in error
    assert error.count("\n") == 1
    assert not Path("exp").exists()


def test_phones_and_speakers_of_the_synthetic_corpus(tiny_teacher, tmp_path, monkeypatch, capsys):
    random = torch.Generator().manual_seed(0)
    examples = [(torch.randn(8000, generator=random), torch.arange(24) % 3, index % 2) for index in range(4)]
    splits = dict.fromkeys(("train", "seen", "unseen"), examples)
    monkeypatch.setattr(Probe, "synthetic", lambda frame_count: Probe(splits))
    output = tmp_path / "table.csv"
    assert probe.main([str(tiny_teacher), "--synthetic", "--output", str(output)]) == 0
    rows = read_csv(output)
    assert {row["measure"] for row in rows} == {"phone", "phone_unseen", "speaker"}
    assert {row["folder"] for row in rows} == {"synthetic"}
    assert "synthetic, percent" in capsys.readouterr().out


def test_abx_is_refused_before_any_work_without_its_library_or_with_other_frames(tiny_teacher, monkeypatch, capsys):
    monkeypatch.setattr("distiller.probes.abx.importlib.util.find_spec", lambda name: None)
    assert probe.main([str(tiny_teacher), "--abx", "synthetic"]) == 2
    assert "fastabx is not installed; run uv sync --extra abx, with Python 3.12 or later" in capsys.readouterr().err
    monkeypatch.setattr("distiller.probes.evaluate.check_installed", lambda: None)
    monkeypatch.setattr("distiller.probes.evaluate.HOP", 160)
    assert probe.main([str(tiny_teacher), "--abx", "synthetic"]) == 2
    assert "has a frame every 20 ms, but ABX takes" in capsys.readouterr().err
