"""Corpora decoded once: the same as the corpus, what is bad set aside, and the command that makes them."""

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, Recording, RecordingSet

from distiller.audio.decoding import decode
from distiller.audio.sampler import StepBatchSampler
from distiller.audio.skipped import read_skipped
from distiller.corpora import shards as preparation_shards
from distiller.corpora.config import CorpusConfig
from distiller.corpora.corpus import open_audio, open_corpus
from distiller.corpora.prepare import prepare, shards_of, verify
from distiller.corpora.scanning import scan
from distiller.corpora.shards import encode
from distiller.corpus import main
from tests.distiller.corpora.prepared_corpora import mixed_corpus
from upstream.errors import UserError


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return mixed_corpus(tmp_path)


def assert_same(source: CorpusConfig, prepared: CorpusConfig) -> None:
    one, other = open_corpus(source), open_corpus(prepared)
    for cuts, theirs in ((one.train, other.train), (one.validation, other.validation)):
        assert [(cut.id, cut.duration) for cut in cuts] == [(cut.id, cut.duration) for cut in theirs]
        for cut, same in zip(cuts, theirs, strict=True):
            waveform, stored = decode(cut), decode(same)
            assert waveform.shape == stored.shape
            exact = cut.id.endswith(("a.flac", "b.wav"))
            assert (waveform - stored).abs().max() <= (0 if exact else 2**-16)
    batches = [[[cut.id for cut in batch] for batch in window] for window in sampled(one)]
    assert batches == [[[cut.id for cut in batch] for batch in window] for window in sampled(other)]


def sampled(corpus) -> list[list[CutSet]]:
    return list(StepBatchSampler(corpus.train, batch_seconds=2, buckets=3, seed=1, accumulate=1).windows(epoch=0))


@pytest.mark.parametrize("format", ["wav", "flac"])
@pytest.mark.parametrize("workers", [0, 2])
def test_subsets_are_the_corpus(corpus: Path, tmp_path: Path, format, workers: int) -> None:
    subsets = {"subsets": ["train"], "validation": ["dev"]}
    made = prepare(corpus.parent, tmp_path / "out", ["train", "dev"], format, workers, shard_seconds=1.5)
    assert (made.utterances, made.skipped) == (12, 0)
    assert made.shards == 4
    assert_same(CorpusConfig(str(corpus.parent), **subsets), CorpusConfig(str(tmp_path / "out"), **subsets))
    assert verify(tmp_path / "out", workers) == made


def test_windows_of_a_prepared_corpus_are_what_it_holds(corpus: Path, tmp_path: Path) -> None:
    prepare(corpus, tmp_path / "out", shard_seconds=2)
    whole, parts = (open_audio(str(tmp_path / "out"), "corpus.path", longest) for longest in (9.0, 0.2))
    assert len(whole) == 12 < len(parts)
    for cut in whole:
        windows = [decode(part) for part in parts if part.id.rpartition("-")[0] == cut.id]
        stored = decode(cut)
        heard = torch.cat(windows)
        assert 0 <= len(stored) - len(heard) < 400  # a last window of less than a frame is left out
        assert torch.equal(heard, stored[: len(heard)])


@pytest.mark.parametrize("parent", [True, False])
def test_a_folder_prepared_whole_has_its_subsets(corpus: Path, tmp_path: Path, parent: bool) -> None:
    source = corpus.parent if parent else corpus
    prepare(source, tmp_path / "out", shard_seconds=2)
    whole = {"subsets": [], "validation_share": 0.3}
    assert_same(CorpusConfig(str(source), **whole), CorpusConfig(str(tmp_path / "out"), **whole))
    subsets = {"subsets": ["train"], "validation": ["dev"]}
    assert_same(CorpusConfig(str(source), **subsets), CorpusConfig(str(tmp_path / "out"), **subsets))
    with pytest.raises(UserError, match=r"has no subset 'test'; the subsets prepared are dev, train$"):
        open_corpus(CorpusConfig(str(tmp_path / "out"), ["test"]))


def test_a_manifest(corpus: Path, tmp_path: Path) -> None:
    """Of its cuts, the parts that they are."""
    recordings = [Recording.from_file(path) for path in sorted(corpus.rglob("*.flac"))]
    RecordingSet.from_recordings(recordings[:2]).to_file(tmp_path / "recordings.jsonl.gz")
    cuts = [recording.to_cut().truncate(offset=0.1, duration=0.25, preserve_id=True) for recording in recordings]
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
    for name in ("recordings", "cuts"):
        prepare(tmp_path / f"{name}.jsonl.gz", tmp_path / f"out-{name}")
        share = {"validation_share": 0.3}
        assert_same(
            CorpusConfig(str(tmp_path / f"{name}.jsonl.gz"), **share),
            CorpusConfig(str(tmp_path / f"out-{name}"), **share),
        )


def test_lhotse_reads_it_as_shar(corpus: Path, tmp_path: Path) -> None:
    prepare(corpus, tmp_path / "out", ["train"], shard_seconds=1.5)
    cuts = {cut.id: cut for cut in CutSet.from_shar(in_dir=tmp_path / "out/train")}
    theirs = {cut.id: cut for cut in scan(corpus / "train", corpus)[0]}
    assert list(cuts) == list(theirs)
    assert cuts["train/1/b.wav"].sampling_rate == 16_000
    assert np.array_equal(cuts["train/1/b.wav"].load_audio()[0], decode(theirs["train/1/b.wav"]).numpy())
    assert cuts["train/other.flac"].load_audio().shape == (1, 8001)  # 22051 / 44100 s


def test_what_16_bits_cannot_hold_stays_float() -> None:
    usual = np.array([0.5, -1.0, 1 / 3], dtype=np.float32)
    for format in ("wav", "flac"):
        ending, audio = encode(usual, format)
        assert ending == format
        assert np.abs(read(audio) - usual).max() <= 2**-16
    for special in ([1.5, 0.0, -2.0], [1.0, 0.1, 0.1], [1e-6, -1e-6, 0.0]):
        ending, audio = encode(np.array(special, dtype=np.float32), "flac")
        assert ending == "au"
        assert np.array_equal(read(audio), np.array(special, dtype=np.float32))
        assert audio == encode(np.array(special, dtype=np.float32), "flac")[1]


def read(audio: bytes) -> np.ndarray:
    import io

    return soundfile.read(io.BytesIO(audio), dtype="float32")[0]


def test_shards_are_runs_of_cuts(corpus: Path) -> None:
    cuts = scan(corpus, corpus)[0]
    work = shards_of("all", cuts, seconds=1.5)
    assert [cut.id for item in work for cut in item.cuts] == [cut.id for cut in cuts]
    assert [item.index for item in work] == list(range(len(work)))
    assert all(sum(cut.duration for cut in item.cuts[:-1]) < 1.5 for item in work)
    assert all(sum(cut.duration for cut in item.cuts) >= 1.5 for item in work[:-1])


# --- what is bad is set aside


def test_bad_files_are_set_aside_and_counted(corpus: Path, tmp_path: Path) -> None:
    whole = (corpus / "train/1/b.wav").read_bytes()
    (corpus / "train/1/cut.flac").write_bytes((corpus / "train/1/a.flac").read_bytes()[:9_000])
    (corpus / "train/1/silent.wav").write_bytes(whole[:44] + bytes(len(whole) - 44))
    (corpus / "train/1/text.wav").write_text("no audio")
    made = prepare(corpus, tmp_path / "out", ["train", "dev"], max_skipped=0.05)
    assert (made.utterances, made.skipped) == (12, 3)
    rows = {Path(row.path).name: row.reason for row in read_skipped(tmp_path / "out/skipped.csv")}
    assert rows.keys() == {"cut.flac", "silent.wav", "text.wav"}
    assert rows["silent.wav"] == "all its samples are zero"
    opened = open_corpus(CorpusConfig(str(tmp_path / "out"), ["train"], ["dev"], max_skipped=0.05))
    assert len(opened.skipped) == 3
    assert len(opened.train) == 6
    with pytest.raises(UserError, match=r"3 of 15 utterances .* could not be used"):
        open_corpus(CorpusConfig(str(tmp_path / "out"), ["train"], ["dev"], max_skipped=0.01))


def test_too_many_bad_files_stop_it(corpus: Path, tmp_path: Path) -> None:
    for index in range(3):
        (corpus / f"train/{index}.wav").write_text("no audio")
    with pytest.raises(UserError, match=r"^3 of 15 utterances \(20.0%\) could not be used, .* --max-skipped$"):
        prepare(corpus, tmp_path / "out", ["train", "dev"])
    assert len(read_skipped(tmp_path / "out/skipped.csv")) == 3
    prepare(corpus, tmp_path / "out", ["train", "dev"], max_skipped=0.05)


def test_a_shard_of_which_nothing_can_be_used(corpus: Path, tmp_path: Path) -> None:
    path = corpus / "train/1/a.flac"
    soundfile.write(path, np.zeros(30_000), 16_000)
    made = prepare(corpus, tmp_path / "out", ["train"], shard_seconds=1.5, max_skipped=0.05)
    assert (made.utterances, made.skipped) == (5, 1)
    assert len(open_corpus(CorpusConfig(str(tmp_path / "out"), ["train"])).train) > 1


def test_a_corpus_that_disappears_is_not_set_aside(corpus: Path, tmp_path: Path, monkeypatch) -> None:
    def gone(cut, min_samples):
        shutil.rmtree(corpus / "train", ignore_errors=True)
        return decode(cut, min_samples)

    saved = tmp_path / "saved"
    shutil.copytree(corpus, saved)
    monkeypatch.setattr(preparation_shards, "decode", gone)
    with pytest.raises(UserError, match=r"a.flac cannot be read any more: No such file or directory; run the same"):
        prepare(corpus, tmp_path / "out", ["train"])
    monkeypatch.undo()
    shutil.copytree(saved, corpus, dirs_exist_ok=True)
    assert prepare(corpus, tmp_path / "out", ["train"]).skipped == 0


# --- the command line


def refused(capfd, *argv: object) -> str:
    code = main([str(argument) for argument in argv])
    out, err = capfd.readouterr()
    assert code == 2, out
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    return err


def test_a_table_below_a_file_is_refused_before_any_work(tmp_path: Path, capfd) -> None:
    (tmp_path / "file").touch()
    line = refused(capfd, "benchmark", tmp_path / "no/corpus", "--table", tmp_path / "file/x.csv")
    assert "file cannot be the output: " in line


def test_the_command_line(corpus: Path, tmp_path: Path, capfd) -> None:
    out = tmp_path / "out"
    argv = ["prepare", corpus, "--output", out, "--subsets", "train", "dev", "--workers", "0"]
    assert main(list(map(str, argv))) == 0
    printed, err = capfd.readouterr()
    assert err == ""
    assert "12 utterances, 0.00 hours, 2 shards" in printed
    assert main(list(map(str, argv))) == 0
    assert capfd.readouterr().out == printed
    assert main(["verify", str(out), "--workers", "0"]) == 0
    assert "12 utterances" in capfd.readouterr().out
    assert "was prepared otherwise: format ('wav' against 'flac')" in refused(capfd, *argv, "--format", "flac")
    assert "is a prepared corpus already" in refused(capfd, "prepare", out, "--output", tmp_path / "again")
    assert "holds no prepared corpus" in refused(capfd, "verify", corpus)
    assert "--workers is -1" in refused(capfd, "verify", out, "--workers", "-1")
    assert "holds LibriSpeech, which is no prepared" in refused(capfd, "prepare", corpus, "--output", corpus.parent)
    assert "does not exist" in refused(capfd, "prepare", tmp_path / "nowhere", "--output", tmp_path / "x")
    assert "has no subset 'test'" in refused(capfd, "prepare", corpus, "--output", tmp_path / "y", "--subsets", "test")


def test_a_full_disk(corpus: Path, tmp_path: Path, capfd, monkeypatch) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))  # the archive is larger, all else smaller
    try:
        line = refused(capfd, "prepare", corpus, "--output", tmp_path / "out", "--workers", "0")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "all/recording.000000.tar cannot be written: File too large" in line
    assert [path.name for path in (tmp_path / "out/all").iterdir()] == []
    assert prepare(corpus, tmp_path / "out").utterances == 12


@pytest.mark.slow
def test_a_training_run_on_it(small_run) -> None:
    """The same losses, from the command line, as on the files themselves."""
    report, _ = small_run.completes()
    prepare(Path("corpus"), Path("prepared"), ["train", "dev"])
    prepared, _ = small_run.completes("--corpus=prepared", output="other")
    assert prepared["losses"] == report["losses"]
    assert torch.isfinite(torch.tensor(prepared["losses"]["train"]["loss"]))
