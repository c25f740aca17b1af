"""Sources on disk to cuts with checked headers."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import AudioSource, CutSet, Recording, RecordingSet, SupervisionSegment
from lhotse.shar import SharWriter

from distiller.audio.decoding import Decoder, Undecodable, source_path
from distiller.corpora import scanning
from distiller.corpora.scanning import locate, scan, scan_cached
from upstream.errors import UserError

RATE = 16_000
decode = Decoder(min_samples=400).decode


def write(path, samples=8000, rate=RATE, channels=1, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(0, 0.1, (samples, channels))
    soundfile.write(path, noise, rate, **({"format": "OGG", "subtype": "OPUS"} if path.suffix == ".opus" else {}))
    return path


def test_a_folder_of_audio(tmp_path):
    for name in ("b/2.flac", "b/1.WAV", "a.mp3", "c/d/e.ogg", "c/d.opus"):
        write(tmp_path / name)
    write(tmp_path / ".hidden/x.wav")
    write(tmp_path / "b/._1.wav")
    (tmp_path / "notes.txt").write_text("no audio")
    cuts, skipped = scan(tmp_path, tmp_path)
    assert [cut.id for cut in cuts] == ["a.mp3", "b/1.WAV", "b/2.flac", "c/d/e.ogg", "c/d.opus"]
    assert source_path(cuts[1]) == str(tmp_path / "b/1.WAV")
    assert all(cut.duration == 0.5 for cut in cuts)
    assert skipped == []


def test_links_are_followed_once(tmp_path):
    write(tmp_path / "elsewhere/a.wav")
    folder = tmp_path / "folder"
    write(folder / "b.wav")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(folder)
    assert [cut.id for cut in scan(folder, folder)[0]] == ["b.wav", "linked/a.wav"]


def test_unreadable_headers_are_set_aside_with_their_reasons(tmp_path):
    good = write(tmp_path / "good.wav")
    (tmp_path / "empty.wav").touch()
    (tmp_path / "zeroed.flac").write_bytes(bytes(10_000))
    (tmp_path / "zeroed.mp3").write_bytes(bytes(10_000))
    (tmp_path / "nowhere.wav").symlink_to(tmp_path / "gone")
    write(tmp_path / "none.wav", samples=0)
    Path(os.fsdecode(bytes(tmp_path) + b"/\xff.wav")).write_bytes(good.read_bytes())
    cuts, skipped = scan(tmp_path, tmp_path)
    assert [cut.id for cut in cuts] == ["good.wav"]
    assert {Path(row.path).name: row.reason for row in skipped} == {
        "empty.wav": "Format not recognised.",
        "zeroed.flac": "Format not recognised.",
        "zeroed.mp3": "Format not recognised.",
        "nowhere.wav": "No such file or directory",
        "none.wav": "it holds no samples",
        "\ufffd.wav": "its name is not UTF-8",
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_read_permission(tmp_path):
    write(tmp_path / "a.wav")
    write(tmp_path / "closed.wav").chmod(0)
    assert scan(tmp_path, tmp_path)[1][0].reason == "Permission denied"
    (tmp_path / "folder").mkdir(mode=0)
    with pytest.raises(UserError, match="folder cannot be read: Permission denied"):
        scan(tmp_path, tmp_path)


def test_no_read_permission_as_the_system_reports_it(tmp_path, monkeypatch):
    """What root, who may read everything, can see of the case above."""
    write(tmp_path / "folder/a.wav")

    def denied(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", denied)
        patch.setattr(soundfile, "info", denied)
        (row,) = scan(tmp_path / "folder/a.wav", tmp_path)[1]
    assert row == (str(tmp_path / "folder/a.wav"), "Permission denied")
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", denied)
        with pytest.raises(UserError, match=r"^\S+ cannot be read: Permission denied$"):
            scan(tmp_path, tmp_path)


def test_an_empty_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    with pytest.raises(UserError, match=r"holds no audio: neither wav, flac, mp3, ogg, opus files"):
        scan(tmp_path, tmp_path)


def test_a_file_that_is_not_a_corpus(tmp_path):
    (tmp_path / "corpus.tsv").touch()
    with pytest.raises(UserError, match=r"corpus.tsv is not a corpus; a corpus is a folder, or a file"):
        scan(tmp_path / "corpus.tsv", tmp_path)


# --- manifests


def test_manifests_of_recordings_and_of_cuts(tmp_path):
    paths = [write(tmp_path / f"{i}.wav", channels=1 + i, seed=i) for i in range(2)]
    recordings = RecordingSet.from_recordings(Recording.from_file(path) for path in paths)
    recordings.to_file(tmp_path / "recordings.jsonl.gz")
    cuts, skipped = scan(tmp_path / "recordings.jsonl.gz", tmp_path)
    assert [(cut.id, cut.num_channels, cut.duration) for cut in cuts] == [("0", 1, 0.5), ("1", 2, 0.5)]
    assert skipped == []

    part = cuts[0].truncate(offset=0.125, duration=0.25)
    part.supervisions = [SupervisionSegment("s", "0", 0, 0.25, text="words")]
    CutSet.from_cuts([part]).to_file(tmp_path / "cuts.jsonl")
    ((again,), _) = scan(tmp_path / "cuts.jsonl", tmp_path)
    assert (again.start, again.duration) == (0.125, 0.25)
    assert again.supervisions == []
    assert decode(again).shape == (4000,)


def test_a_manifest_whose_audio_is_gone(tmp_path):
    paths = [write(tmp_path / f"{i}.wav") for i in range(2)]
    manifest = tmp_path / "recordings.jsonl"
    RecordingSet.from_recordings(Recording.from_file(path) for path in paths).to_file(manifest)
    paths[0].unlink()
    cuts, skipped = scan(manifest, tmp_path)
    assert [cut.id for cut in cuts] == ["1"]
    assert skipped == [(str(paths[0]), "No such file or directory")]


def test_a_manifest_runs_no_commands(tmp_path):
    source = AudioSource("command", [0], f"touch {tmp_path}/ran")
    manifest = tmp_path / "cuts.jsonl"
    cut = Recording("a", [source], RATE, 8000, 0.5).to_cut()
    CutSet.from_cuts([cut, cut.pad(duration=1.0, preserve_id=True)]).to_file(manifest)
    cuts, skipped = scan(manifest, tmp_path)
    assert cuts == []
    assert skipped == [(f"{manifest}:a", "its audio is of type 'command'; only files are read")] * 2
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not json\n", "is not a Lhotse manifest"),
        (b'{"some": "json"}\n', "is not a Lhotse manifest"),
        (json.dumps(SupervisionSegment("s", "r", 0, 1).to_dict()).encode(), "holds a SupervisionSegment; it must hold"),
    ],
)
def test_manifests_that_are_none(tmp_path, content, message):
    (tmp_path / "m.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=f"m.jsonl {message}"):
        scan(tmp_path / "m.jsonl", tmp_path)
    (tmp_path / "m.jsonl.gz").write_bytes(gzip.compress(content)[:-9])
    with pytest.raises(UserError, match=r"m\.jsonl\.gz"):
        scan(tmp_path / "m.jsonl.gz", tmp_path)


def test_a_list(tmp_path):
    write(tmp_path / "one.wav")
    write(tmp_path / "more/two.wav")
    write(tmp_path / "more/three.wav")
    (tmp_path / "list.txt").write_text(f"more\n\n{tmp_path}/one.wav\n")
    cuts, _ = scan(tmp_path / "list.txt", tmp_path)
    assert [cut.id for cut in cuts] == ["more/three.wav", "more/two.wav", "one.wav"]
    (tmp_path / "list.txt").write_text("nothing.wav\n")
    assert scan(tmp_path / "list.txt", tmp_path)[1] == [(str(tmp_path / "nothing.wav"), "No such file or directory")]


# --- Shar


def shar(folder, cuts, audio="wav", shard_size=3):
    folder.mkdir()
    with SharWriter(folder, fields={"recording": audio}, shard_size=shard_size) as writer:
        for cut in cuts:
            writer.write(cut)
    return folder


@pytest.mark.parametrize("audio", ["wav", "flac"])
def test_shar_holds_what_was_put_in(tmp_path, audio):
    for i in range(5):
        write(tmp_path / f"audio/{i}.wav", channels=1 + i % 2, samples=6000 + i, seed=i)
    originals, _ = scan(tmp_path / "audio", tmp_path / "audio")
    originals[0] = originals[0].truncate(offset=0.1, duration=0.2)
    cuts, skipped = scan(shar(tmp_path / "shar", originals, audio), tmp_path)
    assert skipped == []
    assert [cut.id for cut in cuts] == [cut.id for cut in originals]
    for original, cut in zip(originals, cuts, strict=True):
        np.testing.assert_allclose(decode(cut), decode(original), atol=1e-4)
    assert source_path(cuts[4]) == str(tmp_path / f"shar/recording.000001.tar/4.wav.{audio}")


def test_a_truncated_shard(tmp_path):
    for i in range(4):
        write(tmp_path / f"audio/{i}.wav", seed=i)
    folder = shar(tmp_path / "shar", scan(tmp_path / "audio", tmp_path / "audio")[0])
    archive = folder / "recording.000000.tar"
    archive.write_bytes(archive.read_bytes()[:30_000])
    (folder / "recording.000001.tar").unlink()
    cuts, skipped = scan(folder, tmp_path)
    assert [cut.id for cut in cuts] == ["0.wav"]
    assert skipped == [
        (f"{folder}/recording.000000.tar/1.wav", "it is missing or truncated in the archive"),
        (f"{folder}/recording.000000.tar/2.wav", "it is missing or truncated in the archive"),
        (f"{folder}/recording.000001.tar/3.wav", "it is missing or truncated in the archive"),
    ]


def test_a_shard_that_rots_after_the_scan(tmp_path):
    write(tmp_path / "audio/0.wav")
    folder = shar(tmp_path / "shar", scan(tmp_path / "audio", tmp_path / "audio")[0])
    ((cut,), _) = scan(folder, tmp_path)
    archive = folder / "recording.000000.tar"
    archive.write_bytes(bytes(archive.stat().st_size))
    with pytest.raises(Undecodable, match="Format not recognised"):
        decode(cut)


# --- subsets


def test_subsets_of_librispeech_and_of_any_folder(tmp_path):
    for name in ("LibriSpeech/train-clean-100/1/a.flac", "LibriSpeech/dev-clean/2/b.flac"):
        write(tmp_path / name)
    root, sources = locate(tmp_path, ["train-clean-100", "dev-clean"])
    assert root == tmp_path / "LibriSpeech"
    assert [source.name for source in sources] == ["train-clean-100", "dev-clean"]
    assert locate(root, ["dev-clean"]) == (root, [root / "dev-clean"])
    assert locate(root, []) == (root, [root])
    assert scan(sources[0], root)[0][0].id == "train-clean-100/1/a.flac"
    with pytest.raises(UserError, match=r"no subset 'train-clean-360'; its subsets are dev-clean, train-"):
        locate(root, ["train-clean-100", "train-clean-360"])


def test_manifests_are_subsets_too(tmp_path):
    for name in ("train.jsonl.gz", "dev.jsonl"):
        (tmp_path / name).touch()
    assert locate(tmp_path, ["train", "dev"])[1] == [tmp_path / "train.jsonl.gz", tmp_path / "dev.jsonl"]
    with pytest.raises(UserError, match=r"^\S+/dev.jsonl is a file, so it has no subset 'x'$"):
        locate(tmp_path / "dev.jsonl", ["x"])


def test_a_corpus_that_does_not_exist(tmp_path):
    with pytest.raises(UserError, match=r"^\S+/nothing does not exist$"):
        locate(tmp_path / "nothing", [])


# --- the cache


def test_a_second_start_does_not_scan(tmp_path, monkeypatch):
    write(tmp_path / "data/a.wav")
    write(tmp_path / "data/b.flac", channels=2)
    (tmp_path / "data/c.wav").touch()
    cache = tmp_path / "cache"
    first = scan_cached(tmp_path / "data", tmp_path / "data", cache)
    monkeypatch.setattr(scanning, "scan", lambda *_: pytest.fail("scanned again"))
    assert scan_cached(tmp_path / "data", tmp_path / "data", cache) == first
    assert [cut.id for cut in first[0]] == ["a.wav", "b.flac"]
    assert len(first[1]) == 1


def test_the_cache_knows_its_source(tmp_path):
    for name in ("x/train/a.wav", "y/train/b.wav"):
        write(tmp_path / name)
    scans = [scan_cached(tmp_path / name / "train", tmp_path / name, tmp_path / "cache") for name in "xy"]
    assert [cuts[0].id for cuts, _ in scans] == ["train/a.wav", "train/b.wav"]


def test_an_interrupted_scan_leaves_no_manifest(tmp_path, monkeypatch):
    write(tmp_path / "data/a.wav")
    with monkeypatch.context() as patch:
        patch.setattr(scanning, "_write_cuts", lambda path, cuts: path.write_bytes(b"half") and 1 / 0)
        with pytest.raises(ZeroDivisionError):
            scan_cached(tmp_path / "data", tmp_path / "data", tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.jsonl*"))
    assert len(scan_cached(tmp_path / "data", tmp_path / "data", tmp_path / "cache")[0]) == 1


def test_no_cache_writes_nothing(tmp_path):
    write(tmp_path / "data/a.wav")
    scan_cached(tmp_path / "data", tmp_path / "data", None)
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]
