"""Corpora decoded once: the same as the corpus, what is bad set aside, and the command that makes them."""

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, Recording, RecordingSet

from distiller.audio.decoding import Decoder
from distiller.audio.sampler import StepBatchSampler
from distiller.audio.skipped import read_skipped
from distiller.corpora.config import CorpusConfig
from distiller.corpora.corpus import Corpus, open_audio, open_corpus
from distiller.corpora.scanning import scan
from distiller.corpus import main
from distiller.preparation.prepare import plan_shards, prepare, verify
from distiller.preparation.shards import encode
from tests.distiller.corpora.prepared_corpora import mixed_corpus
from upstream.errors import UserError

DECODER = Decoder(min_samples=400)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return mixed_corpus(tmp_path)


def assert_same(source: CorpusConfig, prepared: CorpusConfig) -> None:
    files, stored = open_corpus(source, DECODER), open_corpus(prepared, DECODER)
    for cuts, theirs in ((files.train, stored.train), (files.validation, stored.validation)):
        assert [(cut.id, cut.duration) for cut in cuts] == [(cut.id, cut.duration) for cut in theirs]
        for cut, same in zip(cuts, theirs, strict=True):
            waveform, other = DECODER.decode(cut), DECODER.decode(same)
            assert waveform.shape == other.shape
            exact = "a.flac" in cut.id or "b.wav" in cut.id
            assert (waveform - other).abs().max() <= (0 if exact else 2**-16)
    assert sampled(files) == sampled(stored)


def sampled(corpus: Corpus) -> list[list[list[str]]]:
    """Ids of the batches of epoch 0."""
    sampler = StepBatchSampler(corpus.train, batch_seconds=2, buckets=3, seed=1)
    return [[[cut.id for cut in batch] for batch in step] for step in sampler.step_batches(epoch=0)]


@pytest.mark.parametrize("format", ["wav", "flac"])
@pytest.mark.parametrize("workers", [0, 2])
def test_subsets_are_the_corpus(corpus: Path, tmp_path: Path, format, workers: int) -> None:
    subsets = {"subsets": ["train"], "validation": ["dev"]}
    made = prepare(corpus.parent, tmp_path / "out", ["train", "dev"], format, workers, shard_seconds=1.5)
    assert (made.utterances, made.skipped) == (12, 0)
    assert made.shards == 4
    assert_same(CorpusConfig(str(corpus.parent), **subsets), CorpusConfig(str(tmp_path / "out"), **subsets))
    assert verify(tmp_path / "out", workers) == made


def test_windows_of_a_prepared_corpus_are_the_corpus_windows(corpus: Path, tmp_path: Path) -> None:
    """The same windows on the same side in the same batches, of samples at most 2^-16 off."""
    prepare(corpus, tmp_path / "out", shard_seconds=2)
    long = {"validation_share": 0.3, "batch_seconds": 0.6, "window_seconds": 0.3}
    assert_same(CorpusConfig(str(corpus), **long), CorpusConfig(str(tmp_path / "out"), **long))
    inventories = [
        open_corpus(CorpusConfig(path, **long), DECODER).inventory for path in (str(corpus), f"{tmp_path}/out")
    ]
    assert inventories[0] == inventories[1]
    assert inventories[0].windows > 2 * inventories[0].split.count > 0


def test_chunks_of_a_prepared_corpus_are_its_audio(corpus: Path, tmp_path: Path) -> None:
    prepare(corpus, tmp_path / "out", shard_seconds=2)
    files, chunks = (open_audio(str(tmp_path / "out"), longest, DECODER) for longest in (9.0, 0.2))
    assert len(files) == 12 < len(chunks)
    for cut in files:
        heard = torch.cat([DECODER.decode(chunk) for chunk in chunks if chunk.id.rpartition("-")[0] == cut.id])
        stored = DECODER.decode(cut)
        assert 0 <= len(stored) - len(heard) < 400  # a last chunk of less than a frame is left out
        assert torch.equal(heard, stored[: len(heard)])


@pytest.mark.parametrize("parent", [True, False])
def test_a_folder_prepared_without_subsets_has_them(corpus: Path, tmp_path: Path, parent: bool) -> None:
    source = corpus.parent if parent else corpus
    prepare(source, tmp_path / "out", shard_seconds=2)
    everything = {"subsets": [], "validation_share": 0.3}
    assert_same(CorpusConfig(str(source), **everything), CorpusConfig(str(tmp_path / "out"), **everything))
    subsets = {"subsets": ["train"], "validation": ["dev"]}
    assert_same(CorpusConfig(str(source), **subsets), CorpusConfig(str(tmp_path / "out"), **subsets))
    with pytest.raises(UserError, match=r"has no subset 'test'; its subsets are dev, train$"):
        open_corpus(CorpusConfig(str(tmp_path / "out"), ["test"]), DECODER)


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
    assert np.array_equal(cuts["train/1/b.wav"].load_audio()[0], DECODER.decode(theirs["train/1/b.wav"]).numpy())
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
    work = plan_shards("all", cuts, seconds=1.5)
    assert [cut.id for item in work for cut in item.cuts] == [cut.id for cut in cuts]
    assert [item.index for item in work] == list(range(len(work)))
    assert all(sum(cut.duration for cut in item.cuts[:-1]) < 1.5 for item in work)
    assert all(sum(cut.duration for cut in item.cuts) >= 1.5 for item in work[:-1])


# --- what is bad is set aside


def test_bad_files_are_set_aside_and_counted(corpus: Path, tmp_path: Path) -> None:
    good = (corpus / "train/1/b.wav").read_bytes()
    (corpus / "train/1/cut.flac").write_bytes((corpus / "train/1/a.flac").read_bytes()[:9_000])
    (corpus / "train/1/silent.wav").write_bytes(good[:44] + bytes(len(good) - 44))
    (corpus / "train/1/text.wav").write_text("no audio")
    made = prepare(corpus, tmp_path / "out", ["train", "dev"], max_skipped=0.05)
    assert (made.utterances, made.skipped) == (12, 3)
    rows = {Path(row.path).name: row.reason for row in read_skipped(tmp_path / "out/skipped.csv")}
    assert rows.keys() == {"cut.flac", "silent.wav", "text.wav"}
    assert rows["silent.wav"] == "all its samples are zero"
    opened = open_corpus(CorpusConfig(str(tmp_path / "out"), ["train"], ["dev"], max_skipped=0.05), DECODER)
    assert len(opened.skipped) == 3
    assert len(opened.train) == 6
    with pytest.raises(UserError, match=r"3 of 15 utterances .* could not be used"):
        open_corpus(CorpusConfig(str(tmp_path / "out"), ["train"], ["dev"], max_skipped=0.01), DECODER)


def test_too_many_bad_files_stop_it(corpus: Path, tmp_path: Path) -> None:
    for index in range(3):
        (corpus / f"train/{index}.wav").write_text("no audio")
    with pytest.raises(
        UserError, match=r"^3 of 15 utterances \(20.0%\) could not be used, more than --max-skipped allows .*"
    ):
        prepare(corpus, tmp_path / "out", ["train", "dev"])
    assert len(read_skipped(tmp_path / "out/skipped.csv")) == 3
    prepare(corpus, tmp_path / "out", ["train", "dev"], max_skipped=0.05)


def test_a_shard_of_which_nothing_can_be_used(corpus: Path, tmp_path: Path) -> None:
    path = corpus / "train/1/a.flac"
    soundfile.write(path, np.zeros(30_000), 16_000)
    made = prepare(corpus, tmp_path / "out", ["train"], shard_seconds=1.5, max_skipped=0.05)
    assert (made.utterances, made.skipped) == (5, 1)
    assert len(open_corpus(CorpusConfig(str(tmp_path / "out"), ["train"]), DECODER).train) > 1


def test_a_corpus_that_disappears_is_not_set_aside(corpus: Path, tmp_path: Path, monkeypatch) -> None:
    def gone(self, cut):
        shutil.rmtree(corpus / "train", ignore_errors=True)
        return decode(self, cut)

    decode = Decoder.decode
    saved = tmp_path / "saved"
    shutil.copytree(corpus, saved)
    monkeypatch.setattr(Decoder, "decode", gone)
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
    assert "file cannot be written: " in line


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
    assert "was prepared with another format ('wav' against 'flac')" in refused(capfd, *argv, "--format", "flac")
    assert "is already prepared; use it as --corpus of run.py" in refused(
        capfd, "prepare", out, "--output", tmp_path / "again"
    )
    assert "is not a prepared corpus: it has no preparation.json" in refused(capfd, "verify", corpus)
    assert "--workers is -1" in refused(capfd, "verify", out, "--workers", "-1")
    assert "is not a prepared corpus (it holds LibriSpeech)" in refused(
        capfd, "prepare", corpus, "--output", corpus.parent
    )


def test_a_refused_preparation_leaves_nothing(corpus: Path, tmp_path: Path, capfd) -> None:
    before, out = sorted(tmp_path.iterdir()), tmp_path / "new/out"
    (tmp_path / "data/empty").mkdir()
    assert refused(capfd, "prepare", "/nowhere", "--output", out) == "error: /nowhere does not exist\n"
    assert "has no subset 'test'" in refused(capfd, "prepare", corpus, "--output", out, "--subsets", "test")
    assert "empty holds no audio" in refused(capfd, "prepare", tmp_path / "data/empty", "--output", out)
    assert "--max-skipped is 2.0, but" in refused(capfd, "prepare", corpus, "--output", out, "--max-skipped", 2)
    assert sorted(tmp_path.iterdir()) == before


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
