"""Speech of many voices and languages: deterministic, resumable, and a corpus."""

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile

from distiller.audio.decoding import Decoder
from distiller.corpora.corpus import open_audio
from distiller.synthesis.espeak import Prosody, Synthesizer
from distiller.synthesise import main
from distiller.voices import make
from distiller.voices.languages import ACCENTS, chosen
from distiller.voices.make import make_speech
from upstream.errors import UserError

SPEAKER_HOURS = 4 / 3600


@pytest.fixture(autouse=True)
def brief_speakers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "SPEAKER_SECONDS", 4.0)


@pytest.fixture(scope="module")
def synthesizer():
    with Synthesizer() as synthesizer:
        yield synthesizer


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_speech_is_a_corpus_with_a_manifest(tmp_path: Path) -> None:
    rows = make_speech(tmp_path, 4 * SPEAKER_HOURS, ["en", "cs"], seed=1, workers=2)
    assert {row["speaker"] for row in rows} == {"en-1-0000", "en-1-0001", "cs-1-0000", "cs-1-0001"}
    with (tmp_path / "manifest.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == rows
    cuts = {cut.id: cut for cut in open_audio(str(tmp_path), 20.0, Decoder(400))}
    assert set(cuts) == {row["path"] for row in rows}
    for row in rows:
        assert row["path"] == f"{row['language']}/{row['speaker']}/{row['id']}.flac"
        assert float(row["seconds"]) == pytest.approx(cuts[row["path"]].duration, abs=1e-4)
        assert 1 <= float(row["seconds"]) <= 12
        samples, rate = soundfile.read(tmp_path / row["path"])
        assert (rate, samples.ndim) == (16_000, 1)
        assert np.sqrt(np.mean(samples**2)) > 0.005
    for speaker in {row["speaker"] for row in rows}:
        assert sum(float(row["seconds"]) for row in rows if row["speaker"] == speaker) >= 4


def test_the_bytes_depend_on_seed_language_and_number_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many processes work, whatever was there before, and in whatever order it was asked for."""
    make_speech(tmp_path / "a", 3 * SPEAKER_HOURS, ["en", "cs"], seed=1, workers=2)
    reference = contents(tmp_path / "a")
    speak, spoken = make._write_speaker, []

    def interrupted(*arguments) -> None:
        if spoken:
            raise UserError("no more")
        spoken.append(arguments)
        speak(*arguments)

    monkeypatch.setattr(make, "_write_speaker", interrupted)
    with pytest.raises(UserError, match="no more"):
        make_speech(tmp_path / "b", 3 * SPEAKER_HOURS, ["en", "cs"], seed=1, workers=1)
    assert len(list((tmp_path / "b").glob("*/*"))) == 1
    monkeypatch.setattr(make, "_write_speaker", speak)
    make_speech(tmp_path / "b", SPEAKER_HOURS, ["cs"], seed=1, workers=1)
    make_speech(tmp_path / "b", 3 * SPEAKER_HOURS, ["en", "cs"], seed=1, workers=1)
    assert contents(tmp_path / "b") == reference
    monkeypatch.setattr(make, "_write_speaker", None)  # nothing is left to do
    make_speech(tmp_path / "b", 3 * SPEAKER_HOURS, ["en", "cs"], seed=1, workers=1)


def test_a_folder_holds_one_seed(tmp_path: Path) -> None:
    make_speech(tmp_path / "a", SPEAKER_HOURS, ["en"], seed=1, workers=1)
    with pytest.raises(UserError, match=r"--seed is 2, but it must be 1, as when .*a was made"):
        make_speech(tmp_path / "a", SPEAKER_HOURS, ["en"], seed=2, workers=1)
    other = contents(make_folder(tmp_path / "b", seed=2))
    assert not {name for name in other if name.endswith(".flac")} & set(contents(tmp_path / "a"))
    (tmp_path / "c/music").mkdir(parents=True)
    with pytest.raises(UserError, match="must be a new or empty folder"):
        make_folder(tmp_path / "c", seed=1)
    (tmp_path / "a/synthesis.json").write_text("{")
    with pytest.raises(UserError, match=r"synthesis.json cannot be read: .*; choose another --output"):
        make_folder(tmp_path / "a", seed=1)


def make_folder(folder: Path, seed: int) -> Path:
    make_speech(folder, SPEAKER_HOURS, ["en"], seed=seed, workers=1)
    return folder


@pytest.mark.parametrize("accent", sorted({accent for accents in ACCENTS.values() for accent in accents}))
def test_every_accent_speaks(accent: str, synthesizer: Synthesizer) -> None:
    samples = synthesizer.say("7 25", accent, "pitch 90 140", Prosody())
    assert 0.5 < samples.size / 16_000 < 6
    assert np.abs(samples.astype(int)).max() > 1000


def test_languages_are_chosen_in_a_fixed_order() -> None:
    assert chosen(["all"], []) == list(ACCENTS)
    assert chosen(["fr", "en"], []) == chosen(["en", "fr"], []) == ["en", "fr"]
    assert chosen(["all"], ["it"]) == [name for name in ACCENTS if name != "it"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--hours 0", "--hours is 0.0, but it must be a number above 0, at most 100000"),
        ("--hours nan", "--hours is nan"),
        ("--hours 1 --languages itt", "the language 'itt' of --languages does not exist; did you mean tt?"),
        ("--hours 1 --languages en,", "the language '' of --languages does not exist"),
        ("--hours 1 --without xx", "the language 'xx' of --without does not exist"),
        ("--hours 1 --languages it --without it", "--without is ['it'], but it must be fewer languages than"),
        ("--hours 1 --seed -1", "--seed is -1, but it must be an integer of at least 0"),
        ("--hours 1 --workers 0", "--workers is 0, but it must be an integer of at least 1"),
    ],
)
def test_bad_options(tmp_path: Path, capfd: pytest.CaptureFixture[str], options: str, message: str) -> None:
    assert main([*options.split(), f"--output={tmp_path}/out"]) == 2
    error = capfd.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert error[0].startswith(f"error: {message}")
    assert not (tmp_path / "out").exists()
