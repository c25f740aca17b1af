"""Short clips joined to utterances: whose clips are together, how long, and what becomes of clips without speech."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from distiller.common.files import read_csv
from distiller.corpus import main
from distiller.preparation.joining import MARGIN, join, trimmed
from upstream.errors import UserError

RATE = 16_000


def word(seconds: float, level: float, silence: float = 0.5) -> np.ndarray:
    """A tone between silences; its level tells which word it is."""
    tone = level * np.sin(2 * np.pi * 400 * np.arange(round(seconds * RATE)) / RATE)
    return np.pad(tone, round(silence * RATE)).astype(np.float32)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Two speakers of six words each, 0.4 s without their silences, and three files that cannot be used."""
    folder = tmp_path / "clips"
    for speaker, level in (("ann", 0.1), ("sub/bob", 0.5)):
        (folder / speaker).mkdir(parents=True)
        for number in range(6):
            soundfile.write(folder / speaker / f"{number}.wav", word(0.4, level + 0.05 * number), RATE)
    soundfile.write(folder / "ann/silent.wav", np.zeros(RATE), RATE)
    soundfile.write(folder / "ann/short.wav", word(0.05, 0.3, silence=0.0), RATE)
    (folder / "ann/broken.wav").write_bytes(b"RIFF")
    return folder


def test_the_clips_of_a_speaker_are_joined_each_once_at_each_speed(clips: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="1 of 15 utterances"):
        made = join(clips, tmp_path / "out", (1.0, 2.0), speeds=[1.0, 0.8])
    assert (made.clips, made.unusable) == (12, 2)
    for name, speaker in (("ann", "ann"), ("sub-bob", "sub/bob")):
        rows = read_csv(tmp_path / "out" / name / "joined.csv")
        for speed in ("1", "0.8"):
            used = [row for row in rows if row["utterance"].startswith(f"{name}/{speed}-")]
            assert sorted(Path(row["clip"]).stem for row in used) == list("012345")
            assert {str(Path(row["clip"]).parent) for row in used} == {speaker}
            lengths = [float(row["seconds"]) for row in used]
            assert lengths == pytest.approx([(0.4 + 2 * MARGIN) / float(speed)] * 6, abs=0.012)
        for utterance in {row["utterance"] for row in rows}:
            inside = [row for row in rows if row["utterance"] == utterance]
            samples, _ = soundfile.read(tmp_path / "out" / utterance)
            total = sum(float(row["seconds"]) for row in inside)
            assert len(samples) / RATE == pytest.approx(total, abs=1e-3)
            assert total < 2.0 + 1.0  # the clip that fills it is the last
            for row in inside:  # joined.csv says where each clip is
                first, count = (round(float(row[key]) * RATE) for key in ("start", "seconds"))
                level = 0.1 * (name == "ann") + 0.5 * (name != "ann") + 0.05 * int(Path(row["clip"]).stem)
                assert np.abs(samples[first : first + count]).max() == pytest.approx(level, rel=0.06)


def test_the_same_command_continues_and_another_is_refused(clips: Path, tmp_path: Path) -> None:
    command = ["join", str(clips / "sub"), "--output", str(tmp_path / "out"), "--seconds", "1,2"]
    assert main(command) == 0
    first = {path.name: path.read_bytes() for path in (tmp_path / "out/bob").iterdir()}
    shutil.rmtree(tmp_path / "out/bob")  # as if it had been killed before
    assert main(command) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out/bob").iterdir()} == first
    with pytest.raises(UserError, match=r"joined with another seed .*; choose another --output"):
        join(clips / "sub", tmp_path / "out", (1.0, 2.0), seed=2)


@pytest.mark.parametrize("option", ["--seconds=5,2", "--seconds=3", "--speeds=3", "--seed=-1"])
def test_impossible_options(option: str, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["join", str(clips), "--output", str(tmp_path / "out"), option]) == 2
    assert f"error: {option.partition('=')[0]} is" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_silence_is_cut_to_a_margin() -> None:
    assert trimmed(word(0.4, 0.3)).size == pytest.approx((0.4 + 2 * MARGIN) * RATE, abs=RATE // 100)
    assert trimmed(np.zeros(RATE, np.float32)).size == 0
