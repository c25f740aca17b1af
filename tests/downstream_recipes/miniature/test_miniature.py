import csv
import importlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from downstream_recipes import corpora
from downstream_recipes.adaptation import compat
from downstream_recipes.adaptation.ctc_datasets import read_lexicon, read_transcripts
from downstream_recipes.miniature.layouts import LAYOUTS
from downstream_recipes.miniature.make import corpora_file, make_with
from downstream_recipes.tasks.corpora_check import missing
from downstream_recipes.tasks.recipes import corpora_of, read_corpora, resolve
from downstream_recipes.tasks.tasks import TASKS
from upstream.errors import UserError


def test_every_recipe_finds_its_corpora(miniature, tmp_path):
    listed = read_corpora(miniature)
    assert listed["miniature"] is True
    for task in TASKS.values():
        assert resolve(task.recipe, listed, tmp_path / task.code)
        assert corpora_of(task.recipe)


def test_the_check_finds_nothing_missing_and_counts_the_hours(miniature, capsys):
    assert corpora.main(["check", str(miniature)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [[code, "complete"] for code in TASKS]
    assert all(float(amount) >= 0 for line in lines for amount in re.findall(r"([\d.]+) h", line))


def test_the_check_names_what_is_missing_and_where_it_comes_from(tmp_path, capsys):
    file = tmp_path / "corpora.yaml"
    (tmp_path / "SNIPS" / "train").mkdir(parents=True)
    file.write_text("snips: SNIPS\nvoxceleb1: absent\n")
    assert corpora.main(["check", str(file)]) == 1
    text = capsys.readouterr().out
    assert re.search(r"sf   missing\n       snips: nothing at .*SNIPS/train/\*\.wav", text)
    assert "get it: s3prl's preprocess/snips_prepare_data.sh" in text
    assert "voxceleb1: " in text
    assert "absent does not exist" in text
    assert "fluent_commands: not in the corpora file" in text
    assert corpora.main(["check", str(tmp_path / "none.yaml")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_word_that_no_lexicon_has_is_missing(miniature, tmp_path, capsys):
    lines = Path(miniature).parent.joinpath("lexicon", "lexicon.txt").read_text().splitlines()
    (tmp_path / "lexicon.txt").write_text("\n".join(line for line in lines if not line.startswith("THE ")))
    listed = read_corpora(miniature)
    (tmp_path / "corpora.yaml").write_text(f"librispeech: {listed['librispeech']}\nlexicon: [lexicon.txt]\n")
    assert corpora.main(["check", str(tmp_path / "corpora.yaml")]) == 1
    assert "lexicon: THE and 0 more words of librispeech are not in it" in capsys.readouterr().out


def test_a_wav_that_a_list_names_must_exist(miniature, tmp_path):
    source = Path(read_corpora(miniature)["voicebank"])
    for path in source.glob("*/*/wav.scp"):
        target = tmp_path / path.relative_to(source)
        target.parent.mkdir(parents=True)
        target.write_text(path.read_text())
    assert missing("voicebank", {"voicebank": str(tmp_path)}) == []
    (tmp_path / "dev" / "clean" / "wav.scp").write_text("dev_0000 /nowhere/a.wav\ndev_0001 /nowhere/b.wav\n")
    fault = "voicebank: /nowhere/a.wav and 1 more files of its wav.scp do not exist"
    assert missing("voicebank", {"voicebank": str(tmp_path)}) == [fault]


def test_libri_transcripts_are_words_of_the_lexicon(miniature):
    listed = read_corpora(miniature)
    root = Path(listed["librispeech"])
    lexicon = read_lexicon(listed["lexicon"], {"K", "AH0"})  # the tones' one phone and schwa
    lines = {key: text for path in root.glob("*/*/*") for key, text in read_transcripts(path).items()}
    assert len(lines) == len(list(root.rglob("*.flac"))) >= 12
    assert {word for text in lines.values() for word in text.split()} <= set(lexicon)


def test_keywords_fall_into_the_splits_that_s3prl_computes(miniature):
    pytest.importorskip("s3prl")
    compat.install()
    module = importlib.import_module("s3prl.downstream.speech_commands.expert")
    train, valid = module.split_dataset(read_corpora(miniature)["speech_commands"])
    assert len(train) == 2 * 18
    assert len(valid) == 1 * 18
    assert {soundfile.info(str(path)).frames for _, path in train} == {16000}


def test_queries_occur_in_some_documents(miniature):
    root = Path(read_corpora(miniature)["quesst14"])
    documents = len((root / "scoring" / "language_key_utterances.lst").read_text().splitlines())
    for split in ("dev", "eval"):
        queries = (root / "scoring" / f"language_key_{split}.lst").read_text().splitlines()
        truth = (root / "scoring" / f"groundtruth_quesst14_{split}" / f"quesst14_{split}.rttm").read_text().splitlines()
        found = {line.split()[5] for line in truth}
        assert found == {Path(line.split()[0]).stem for line in queries}
        assert len(truth) < documents * len(queries)


def test_speakers_of_voxceleb_are_split_and_paired(miniature):
    listed = read_corpora(miniature)
    root = Path(listed["voxceleb1"])
    rows = [line.split() for line in Path(listed["voxceleb1_split"]).read_text().splitlines()]
    people = {path.split("/")[0] for _, path in rows}
    for code in "123":
        assert {path.split("/")[0] for number, path in rows if number == code} == people
    assert all(len(list(root.glob(f"*/wav/{path}"))) == 1 for _, path in rows)
    assert all(10001 <= int(person[2:]) <= 11251 for person in people)
    trials = [line.split() for line in Path(listed["voxceleb1_trials"]).read_text().splitlines()]
    assert {label for label, *_ in trials} == {"0", "1"}
    for label, first, second in trials:
        assert (first.split("/")[0] == second.split("/")[0]) == (label == "1")
        assert (root / "test" / "wav" / first).exists()


def test_mixtures_agree_with_their_segments(miniature):
    root = Path(read_corpora(miniature)["libri2mix_diarization"]) / "test"
    for line in (root / "wav.scp").read_text().splitlines():
        recording, path = line.split()
        samples, _ = soundfile.read(path)
        spans = [row.split() for row in (root / "segments").read_text().splitlines() if row.split()[1] == recording]
        turns = [row.split() for row in (root / "rttm").read_text().splitlines() if row.split()[1] == recording]
        assert len(spans) == len(turns) == 2
        assert max(float(span[3]) for span in spans) == pytest.approx(len(samples) / 16000, abs=1e-3)
        first, second = (int(16000 * float(span[2])) for span in spans)
        assert second > first
        assert np.abs(samples).max() > 0


def test_every_intent_is_in_the_training_data(miniature):
    root = Path(read_corpora(miniature)["fluent_commands"])
    seen = {}
    for split in ("train", "valid", "test"):
        with (root / "data" / f"{split}_data.csv").open() as file:
            rows = list(csv.DictReader(file))
        seen[split] = {(row["action"], row["object"], row["location"]) for row in rows}
        assert all((root / row["path"]).exists() for row in rows)
    assert seen["test"] <= seen["train"]
    assert seen["valid"] <= seen["train"]


def test_corpora_are_made_atomically(tmp_path, monkeypatch, studio):
    def fail(voice, root, home):
        (root / "half.wav").touch()
        raise KeyboardInterrupt

    monkeypatch.setitem(LAYOUTS, "lexicon", fail)
    with pytest.raises(KeyboardInterrupt):
        make_with(studio, tmp_path / "mini")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not empty and does not hold miniature corpora"):
        make_with(studio, tmp_path / "full")


def test_the_corpora_file_is_that_of_the_option_or_the_environment(miniature, own_cache, monkeypatch):
    monkeypatch.delenv("SUPERB_CORPORA", raising=False)
    with pytest.raises(UserError, match=r"give --corpora FILE or set \$SUPERB_CORPORA"):
        corpora_file(None)
    monkeypatch.setenv("SUPERB_CORPORA", "mine.yaml")
    assert corpora_file(None) == Path("mine.yaml")
    assert corpora_file("yours.yaml") == Path("yours.yaml")
    cached = own_cache / "miniature-1" / "corpora.yaml"
    cached.parent.mkdir(parents=True)
    cached.touch()
    assert corpora_file("mini") == cached


def test_the_same_corpora_are_made_each_time(miniature, tmp_path, studio):
    again = make_with(studio, tmp_path / "mini")
    first, second = miniature.parent, again.parent
    names = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
    for name in names:
        if name.suffix != ".scp":  # these name their folder
            assert (first / name).read_bytes() == (second / name).read_bytes()
    assert make_with(studio, tmp_path / "mini") == again  # what exists is left alone


@pytest.mark.slow
def test_real_speech_is_intelligible_to_its_own_lexicon(tmp_path):
    pytest.importorskip("espeakng_loader")
    from downstream_recipes.miniature.make import make_miniature
    from downstream_recipes.tasks.preparation import PHONEMES

    listed = read_corpora(make_miniature(tmp_path / "mini", scale=0.02))
    lexicon = read_lexicon(listed["lexicon"], set(PHONEMES))
    assert lexicon["DOG"].split()[0] == "D"
    assert lexicon["DOG"].split()[-1] == "G"
    assert corpora.main(["check", str(tmp_path / "mini" / "corpora.yaml")]) == 0
    for wav in Path(listed["librispeech"]).rglob("*.flac"):
        samples, rate = soundfile.read(wav)
        assert rate == 16000
        assert 1 < len(samples) / rate < 12
        assert 0.005 < np.sqrt(np.mean(samples**2)) < 0.3


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_synthesis_leaves_nothing(tmp_path, number, status):
    pytest.importorskip("espeakng_loader")
    with (tmp_path / "err").open("w") as err:
        line = [sys.executable, corpora.__file__, "make-mini", str(tmp_path / "mini")]
        process = subprocess.Popen(line, stdout=err, stderr=err, start_new_session=True)
        while not list(tmp_path.glob(".part-*/mini/librispeech/*/*/*")):
            assert process.poll() is None, (tmp_path / "err").read_text()
            time.sleep(0.05)
        os.killpg(process.pid, number)
        assert process.wait(60) == status
    assert (tmp_path / "err").read_text() == "interrupted; run the same command to continue\n"
    assert [path.name for path in tmp_path.iterdir()] == ["err"]
