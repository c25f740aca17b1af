"""The corpus section, and opening what it names."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse.shar import SharWriter

from distiller.audio.decoding import Decoder
from distiller.common.strict import typed
from distiller.corpora import corpus as opening
from distiller.corpora.config import CorpusConfig
from distiller.corpora.corpus import Corpus, hours, open_audio
from distiller.corpora.scanning import scan
from upstream.errors import UserError

RATE = 16_000
DECODER = Decoder(min_samples=400)


def open_corpus(config: CorpusConfig, cache: Path | None = None) -> Corpus:
    return opening.open_corpus(config, DECODER, cache)


def write(path, seconds=0.5):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, int(seconds * RATE)), RATE)
    return path


def ids(cuts):
    return [cut.id for cut in cuts]


@pytest.fixture
def librispeech(tmp_path):
    for subset in ("train-clean-100", "train-clean-360", "dev-clean"):
        for name in ("a", "b"):
            write(tmp_path / f"LibriSpeech/{subset}/{name}.flac")
    return tmp_path


def test_the_defaults_are_valid():
    assert typed(CorpusConfig, None) == CorpusConfig()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"path": ""}, "corpus.path is '', but it must be a folder, a file, or synthetic"),
        ({"subsets": ["a", "a"]}, "corpus.subsets is ['a', 'a'], but it must be a list of different names"),
        ({"subsets": ["a"]}, "corpus.subsets is ['a'], but it must be empty when corpus.path is synthetic"),
        ({"path": "x", "subsets": ["a"], "validation": ["a"]}, "corpus.validation is ['a'], but it must be disjoint"),
        ({"path": "x", "validation": ["a"]}, "corpus.subsets is [], but it must be a list of the subsets to train on"),
        ({"validation_share": 0.0}, "corpus.validation_share is 0.0, but it must be a share above 0 and below 1"),
        ({"min_seconds": -1.0}, "corpus.min_seconds is -1.0, but it must be a number of at least 0"),
        ({"min_seconds": 2.0, "max_seconds": 1.0}, "corpus.max_seconds is 1.0, but it must be a number above"),
        ({"batch_seconds": 0.0}, "corpus.batch_seconds is 0.0, but it must be a number above corpus.min_seconds (0)"),
        ({"batch_seconds": float("nan")}, "corpus.batch_seconds is nan, but it must be a number above"),
        ({"batch_seconds": "most"}, "corpus.batch_seconds is 'most', but it must be a number or auto"),
        ({"batch_seconds": "auto"}, "corpus.step_seconds is None, but it must be a number when"),
        ({"step_seconds": 0.0}, "corpus.step_seconds is 0.0, but it must be a number above 0"),
        ({"buckets": 0}, "corpus.buckets is 0, but it must be an integer of at least 1"),
        ({"workers": -1}, "corpus.workers is -1, but it must be an integer of at least 0"),
        ({"max_skipped": 1.5}, "corpus.max_skipped is 1.5, but it must be a share from 0 to 1"),
    ],
)
def test_impossible_values(change, sentence):
    with pytest.raises(UserError) as error:
        typed(CorpusConfig, change, "corpus")
    assert str(error.value).startswith(sentence)


def test_reading_the_section_loads_neither_torch_nor_lhotse():
    code = "import sys, distiller.corpus; assert not {'torch', 'lhotse'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


def test_subsets(librispeech):
    config = CorpusConfig(str(librispeech), ["train-clean-360", "train-clean-100"], ["dev-clean"])
    corpus = open_corpus(config)
    assert ids(corpus.train) == [f"train-clean-{part}/{name}.flac" for part in (360, 100) for name in "ab"]
    assert ids(corpus.validation) == ["dev-clean/a.flac", "dev-clean/b.flac"]
    assert hours(corpus.train) == pytest.approx(2 / 3600)
    with pytest.raises(UserError, match="no subset 'test-clean'; its subsets are dev-clean, train-clean-100"):
        open_corpus(CorpusConfig(str(librispeech), ["test-clean"]))


def test_holding_out_is_stable(tmp_path):
    for i in range(60):
        write(tmp_path / f"{i:02d}.wav", 0.05)
    config = CorpusConfig(str(tmp_path), validation_share=0.2)
    first = open_corpus(config)
    assert 4 <= len(first.validation) <= 20
    assert sorted(ids(first.train) + ids(first.validation)) == [f"{i:02d}.wav" for i in range(60)]
    (tmp_path / "07.wav").unlink()
    write(tmp_path / "new.wav", 0.05)
    second = open_corpus(config)
    assert set(ids(first.validation)) - {"07.wav"} == set(ids(second.validation)) - {"new.wav"}


@pytest.mark.parametrize(("share", "train", "validation"), [(1e-9, 2, 1), (1 - 1e-9, 1, 2)])
def test_at_least_one_utterance_is_held_out_and_one_is_left(tmp_path, share, train, validation):
    for name in ("a", "b", "c"):
        write(tmp_path / f"{name}.wav")
    corpus = open_corpus(CorpusConfig(str(tmp_path), validation_share=share))
    assert (len(corpus.train), len(corpus.validation)) == (train, validation)


def test_one_utterance_is_too_little(tmp_path):
    write(tmp_path / "a.wav")
    with pytest.raises(UserError, match=r"of 1 utterances .* 0 can be used for training and 1 for validation"):
        open_corpus(CorpusConfig(str(tmp_path)))


def test_audio_to_measure_on_is_all_there_is(tmp_path):
    write(tmp_path / "long.wav", 2.51)
    write(tmp_path / "short.wav", 0.1)
    write(tmp_path / "rest.wav", 2.001)  # in equal windows: none is shorter than a frame
    cuts = open_audio(str(tmp_path), 1.0, DECODER)
    assert ids(cuts) == [*(f"{name}.wav-{part}" for name in ("long", "rest") for part in range(3)), "short.wav"]
    whole = open_audio(str(tmp_path), 9.0, DECODER)
    for name, parts in (("long.wav", cuts[:3]), ("rest.wav", cuts[3:6])):
        heard = torch.cat([DECODER.decode(cut) for cut in parts])
        assert torch.equal(heard, DECODER.decode(next(cut for cut in whole if cut.id == name)))


def test_audio_to_measure_on_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"^/nowhere does not exist$"):
        open_audio("/nowhere", 1.0, DECODER)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UserError, match=r"^\S+/empty.jsonl holds no audio$"):
        open_audio(str(tmp_path / "empty.jsonl"), 1.0, DECODER)
    (tmp_path / "a.wav").touch()
    with pytest.raises(UserError, match=r"none of the 1 utterances of \S+ can be used; the first is \S+a.wav"):
        open_audio(str(tmp_path), 1.0, DECODER)
    write(tmp_path / "b.wav")
    with pytest.warns(UserWarning, match=r"^1 of 2 utterances of \S+ cannot be used; the first is \S+a.wav"):
        assert len(open_audio(str(tmp_path), 1.0, DECODER)) == 1


def test_what_the_bounds_on_duration_leave_out_is_not_called_skipped(tmp_path):
    for i, seconds in enumerate((0.1, 0.2, 0.5, 0.5, 0.5, 1.5, 3.0)):
        write(tmp_path / f"{i}.wav", seconds)
    bounds = {"min_seconds": 0.3, "max_seconds": 5.0, "batch_seconds": 2.0, "window_seconds": None}
    corpus = open_corpus(CorpusConfig(str(tmp_path), **bounds))
    assert sorted(ids(corpus.train) + ids(corpus.validation)) == ["2.wav", "3.wav", "4.wav", "5.wav"]
    assert corpus.skipped == []
    assert corpus.inventory.lines() == [
        "left out: 2 recordings (8.33e-05 hours) shorter than 0.3 s (corpus.min_seconds); 1 recording "
        "(0.000833 hours) longer than 2 s (corpus.window_seconds=20 would split them)"
    ]
    with pytest.raises(UserError, match=r"of 7 utterances \(0.1 to 3 s long\), 0 can be used .* within 4 to 5 s"):
        open_corpus(CorpusConfig(str(tmp_path), min_seconds=4.0, max_seconds=5.0, window_seconds=None))


def test_long_recordings_are_used_in_windows_on_one_side(tmp_path):
    for i in range(20):
        write(tmp_path / f"{i:02d}.wav", 3.7 if i % 2 else 0.5)
    config = CorpusConfig(str(tmp_path), batch_seconds=2.0, window_seconds=1.0, validation_share=0.3)
    corpus = open_corpus(config)
    sides = [{name.split("-")[0] for name in ids(cuts)} for cuts in (corpus.train, corpus.validation)]
    assert sides[0] | sides[1] == {f"{i:02d}.wav" for i in range(20)}
    assert not sides[0] & sides[1]
    whole = open_corpus(CorpusConfig(str(tmp_path), validation_share=0.3))
    assert [set(ids(cuts)) for cuts in (whole.train, whole.validation)] == sides
    assert sum(cut.duration for cut in corpus.train + corpus.validation) == pytest.approx(42.0)
    assert max(cut.duration for cut in corpus.train + corpus.validation) <= 1.0
    assert corpus.inventory.lines() == [
        "split: 10 recordings (0.0103 hours) longer than 2 s, into 40 windows of at most 1 s (corpus.window_seconds)"
    ]


def test_long_recordings_of_a_shar_folder_are_used_in_windows(tmp_path):
    for name, seconds in (("a", 3.1), ("b", 2.2)):
        write(tmp_path / f"audio/{name}.wav", seconds)
    cuts, _ = scan(tmp_path / "audio", tmp_path / "audio")
    (tmp_path / "shar").mkdir()
    with SharWriter(tmp_path / "shar", fields={"recording": "flac"}) as writer:
        for cut in cuts:
            writer.write(cut)
    corpus = open_corpus(CorpusConfig(str(tmp_path / "shar"), batch_seconds=2.0, window_seconds=1.0))
    parts = corpus.train + corpus.validation
    assert sorted(ids(parts)) == [*(f"a.wav-{part}" for part in range(4)), *(f"b.wav-{part}" for part in range(3))]
    for cut in cuts:
        heard = [DECODER.decode(part) for part in parts if part.id.startswith(cut.id)]
        assert torch.equal(torch.cat(heard), DECODER.decode(cut))


def test_files_that_are_not_read_are_counted_and_stop_nothing(tmp_path):
    for name in ("a.wav", "b.aiff", "c/d.au", "e.caf"):
        write(tmp_path / name)
    for name in ("x.m4a", "c/y.M4A", "z.mp4", "notes.txt"):
        (tmp_path / name).write_bytes(b"no matter what")
    corpus = open_corpus(CorpusConfig(str(tmp_path), max_skipped=0.0))
    assert corpus.inventory.not_read == {".m4a": 2, ".mp4": 1}
    assert corpus.inventory.found == 7
    assert corpus.inventory.lines() == ["not read: 2 .m4a, 1 .mp4 (convert them to wav or flac)"]
    assert corpus.skipped[0] == (str(tmp_path / "c/y.M4A"), ".m4a files are not read; convert it to wav or flac")
    for path in tmp_path.rglob("*"):
        if path.suffix in (".wav", ".aiff", ".au", ".caf"):
            path.unlink()
    with pytest.raises(UserError, match=r"holds no audio: .*, but 2 \.m4a, 1 \.mp4, which must be converted first$"):
        open_corpus(CorpusConfig(str(tmp_path)))


def test_what_cannot_be_used_is_listed(tmp_path):
    for i in range(4):
        write(tmp_path / f"{i}.wav")
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    write(tmp_path / "click.wav", 1 / RATE)
    corpus = open_corpus(CorpusConfig(str(tmp_path), max_skipped=0.5))
    assert corpus.skipped == [
        (str(tmp_path / "broken.wav"), "Format not recognised."),
        (str(tmp_path / "click.wav"), "it has 1 samples at 16 kHz, but one frame needs 400"),
    ]
    assert len(corpus.train) + len(corpus.validation) == 4
    with pytest.raises(UserError, match=r"^2 of 6 utterances \(33.3%\) could not be used, more than"):
        open_corpus(CorpusConfig(str(tmp_path), max_skipped=0.01))


def test_nothing_can_be_used(tmp_path):
    (tmp_path / "a.wav").touch()
    with pytest.raises(UserError, match=r"none of the 1 utterances of \S+ can be used; the first is \S+a.wav"):
        open_corpus(CorpusConfig(str(tmp_path)))


def test_a_restart_sees_the_same_corpus(librispeech, tmp_path):
    config = CorpusConfig(str(librispeech), ["train-clean-100"], ["dev-clean"])
    first = open_corpus(config, tmp_path / "exp/corpus")
    write(librispeech / "LibriSpeech/train-clean-100/late.flac")
    second = open_corpus(config, tmp_path / "exp/corpus")
    assert (second.train, second.validation) == (first.train, first.validation)


def test_a_corpus_that_vanished(librispeech, tmp_path):
    config = CorpusConfig(str(librispeech / "LibriSpeech"), ["train-clean-100"], ["dev-clean"])
    open_corpus(config, tmp_path / "exp/corpus")
    (librispeech / "LibriSpeech").rename(librispeech / "moved")
    with pytest.raises(UserError, match=r"^\S+/LibriSpeech does not exist$"):
        open_corpus(config, tmp_path / "exp/corpus")


def test_the_synthetic_corpus_is_the_synthesisers(monkeypatch, tmp_path):
    splits = {name: [write(tmp_path / f"{name}{i}.wav") for i in range(2)] for name in ("train", "validation")}

    def load_split(name):
        return [cut for path in splits[name] for cut in scan(path, tmp_path)[0]]

    monkeypatch.setattr(opening, "load_split", load_split)
    corpus = open_corpus(CorpusConfig())
    assert ids(corpus.train) == ["train0.wav", "train1.wav"]
    assert ids(corpus.validation) == ["validation0.wav", "validation1.wav"]
