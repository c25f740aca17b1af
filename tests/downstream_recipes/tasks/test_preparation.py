import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from downstream_recipes.tasks.preparation import asr_lengths, emotion_folds
from upstream.errors import UserError


def test_asr_lengths_come_from_the_headers(tmp_path):
    root = tmp_path / "LibriSpeech"
    for number, split in enumerate(("train-clean-100", "dev-clean", "test-clean"), start=1):
        folder = root / split / "1" / "2"
        folder.mkdir(parents=True)
        soundfile.write(folder / "1-2-0000.flac", np.zeros(1000 * number), 16000)
    folder = asr_lengths(root)
    assert (folder / "dev-clean.csv").read_text() == ",file_path,length,label\n0,dev-clean/1/2/1-2-0000.flac,2000,0\n"
    before = (folder / "test-clean.csv").stat().st_mtime_ns
    assert (asr_lengths(root) / "test-clean.csv").stat().st_mtime_ns == before
    soundfile.write(root / "dev-clean" / "1" / "2" / "1-2-0001.flac", np.zeros(500), 16000)  # unpacked later
    assert (asr_lengths(root) / "dev-clean.csv").read_text().splitlines()[2] == "1,dev-clean/1/2/1-2-0001.flac,500,0"
    (root / "test-clean" / "1" / "2" / "1-2-0000.flac").write_text("no audio")
    with pytest.raises(UserError, match=r"1-2-0000\.flac cannot be read as audio"):
        asr_lengths(root)


def session(root: Path, number: int) -> None:
    dialog = f"Ses0{number}F_impro01"
    wavs = root / f"Session{number}" / "sentences" / "wav" / dialog
    wavs.mkdir(parents=True)
    lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
    for index, emotion in enumerate(("neu", "exc", "fru", "sad")):
        name = f"{dialog}_F00{index}"
        (wavs / f"{name}.wav").touch()
        lines += [f"[{index}.2901 - {index}.9357]\t{name}\t{emotion}\t[2.5000, 2.5000, 2.5000]", "C-E2:\tNeutral;\t()"]
    evaluation = root / f"Session{number}" / "dialog" / "EmoEvaluation"
    evaluation.mkdir(parents=True)
    (evaluation / f"{dialog}.txt").write_text("\n".join(lines))


def test_each_emotion_fold_tests_on_one_session(tmp_path):
    for number in range(1, 6):
        session(tmp_path / "IEMOCAP", number)
    folder = emotion_folds(tmp_path / "IEMOCAP")
    test = json.loads((folder / "Session3" / "test_meta_data.json").read_text())
    train = json.loads((folder / "Session3" / "train_meta_data.json").read_text())
    assert test["labels"] == {"neu": 0, "hap": 1, "ang": 2, "sad": 3}
    assert [item["label"] for item in test["meta_data"]] == ["neu", "hap", "sad"]  # excitement is happiness
    assert test["meta_data"][1] == {
        "path": "Session3/sentences/wav/Ses03F_impro01/Ses03F_impro01_F001.wav",
        "label": "hap",
        "speaker": "Ses03F",
    }
    assert {item["speaker"] for item in train["meta_data"]} == {"Ses01F", "Ses02F", "Ses04F", "Ses05F"}
    assert len(train["meta_data"]) == 12


def test_a_mended_evaluation_is_read_again(tmp_path):
    for number in range(1, 6):
        session(tmp_path / "IEMOCAP", number)
    emotion_folds(tmp_path / "IEMOCAP")
    evaluation = next((tmp_path / "IEMOCAP" / "Session3" / "dialog" / "EmoEvaluation").iterdir())
    evaluation.write_text(evaluation.read_text().replace("\tfru\t", "\tang\t"))
    test = json.loads((emotion_folds(tmp_path / "IEMOCAP") / "Session3" / "test_meta_data.json").read_text())
    assert [item["label"] for item in test["meta_data"]] == ["neu", "hap", "ang", "sad"]


def test_a_missing_session_is_named(tmp_path):
    session(tmp_path / "IEMOCAP", 1)
    with pytest.raises(UserError, match=r"Session2/sentences/wav has no \.wav file"):
        emotion_folds(tmp_path / "IEMOCAP")
