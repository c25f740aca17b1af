"""Lists and manifests as editors and other tools write them: read, or one sentence with the line and the reason."""

import codecs
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, Recording, RecordingSet
from lhotse.shar import SharWriter

from distiller.audio.decoding import Decoder
from distiller.corpora.config import CorpusConfig
from distiller.corpora.corpus import open_corpus
from distiller.corpora.scanning import locate, scan
from upstream.errors import UserError

RATE = 16_000
DECODER = Decoder(min_samples=400)


def write(path: Path, samples: int = 8000, rate: int = RATE, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(seed).normal(0, 0.1, samples), rate)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, name in enumerate(("a", "b c", "d/é")):
        write(tmp_path / f"wavs/{name}.wav", 8000 + index, seed=index)
    return tmp_path


LINES = ["# made by hand", "wavs/a.wav", "", '"wavs/b c.wav"', "  wavs/d/é.wav\t8002 "]


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(LINES).encode(),
        codecs.BOM_UTF8 + "\r\n".join(LINES).encode(),
        "\r".join(LINES).encode(),
        "\r\n".join(LINES).encode("utf-16"),
    ],
)
@pytest.mark.parametrize("ending", ["txt", "lst", "m3u8"])
def test_a_list_of_any_editor(folder: Path, content: bytes, ending: str) -> None:
    (folder / f"list.{ending}").write_bytes(content)
    cuts, skipped = scan(folder / f"list.{ending}", folder)
    assert [cut.id for cut in cuts] == ["wavs/a.wav", "wavs/b c.wav", "wavs/d/é.wav"]
    assert skipped == []


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"# a\nwavs/a.wav\ncaf\xe9.wav\n", r"^list \S+list.txt, line 3 cannot be read: it is not UTF-8$"),
        (b"wavs/a.wav\n\nwavs/gone\n", r"^list \S+list.txt, line 3: \S+wavs/gone does not exist; a corpus is"),
        (b"# only\n#list.txt\nlist.txt", r"^list \S+list.txt, line 3: list \S+list.txt lists itself$"),
        (b"/nowhere\na.wav\t8000\n", r"^list \S+list.txt, line 1: /nowhere is not a folder, but fairseq lists begin"),
    ],
)
def test_a_list_that_cannot_be_read(folder: Path, content: bytes, sentence: str) -> None:
    (folder / "list.txt").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        scan(folder / "list.txt", folder)


def test_a_list_names_a_format_that_is_not_read_and_a_file_with_a_number_sign(folder: Path) -> None:
    write(folder / "#1.wav")
    (folder / "list.txt").write_text("#1.wav\n# 2.wav\nsong.m4a\n")
    cuts, skipped = scan(folder / "list.txt", folder)
    assert [cut.id for cut in cuts] == ["#1.wav"]
    assert skipped == [(str(folder / "song.m4a"), ".m4a files are not read; convert it to wav or flac")]


@pytest.mark.parametrize("root", ["absolute", "wavs"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_lists_of_fairseq(folder: Path, root: str, newline: str) -> None:
    """Subsets too; ids are relative to the folder in the first line, so they do not depend on where it is."""
    first = str(folder / "wavs") if root == "absolute" else root
    (folder / "train.tsv").write_text(newline.join([first, "b c.wav\t8001", "d/é.wav\t8002", ""]))
    (folder / "valid.tsv").write_text(newline.join([first, "a.wav\t8000"]))
    base, sources = locate(folder, ["train", "valid"])
    assert [[cut.id for cut in scan(source, base)[0]] for source in sources] == [["b c.wav", "d/é.wav"], ["a.wav"]]


# --- manifests


def test_a_manifest_of_any_editor(folder: Path) -> None:
    paths = sorted(folder.rglob("*.wav"))
    lines = [json.dumps(Recording.from_file(path).to_dict()) for path in paths]
    text = codecs.BOM_UTF8 + "\r\n".join(["# comment", lines[0], "", *lines[1:], ""]).encode()
    (folder / "m.jsonl").write_bytes(text)
    (folder / "m.jsonl.gz").write_bytes(gzip.compress(text))
    for name in ("m.jsonl", "m.jsonl.gz"):
        cuts, skipped = scan(folder / name, folder)
        assert ([cut.id for cut in cuts], skipped) == ([path.stem for path in paths], [])
    (folder / "m.jsonl").write_bytes(text + b"{oops}\n")
    with pytest.raises(UserError, match=r"^manifest \S+m.jsonl is not a Lhotse manifest: line 6: "):
        scan(folder / "m.jsonl", folder)


def test_recordings_with_equal_ids_are_all_read(tmp_path: Path) -> None:
    recordings = [Recording.from_file(write(tmp_path / f"{i}/x.wav", 8000 + i, seed=i)) for i in range(4)]
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps(one.to_dict()) for one in recordings))
    cuts, _ = scan(tmp_path / "m.jsonl", tmp_path)
    assert [cut.id for cut in cuts] == ["x"] * 4
    assert [len(DECODER.decode(cut)) for cut in cuts] == [8000, 8001, 8002, 8003]
    (tmp_path / "shar").mkdir()
    with SharWriter(tmp_path / "shar", fields={"recording": "wav"}, shard_size=3) as writer:
        for cut in cuts:
            writer.write(cut)
    stored, skipped = scan(tmp_path / "shar", tmp_path)
    assert [len(DECODER.decode(cut)) for cut in stored] == [8000, 8001, 8002, 8003]
    assert skipped == []


def test_padded_cuts_are_read_without_their_padding(tmp_path: Path) -> None:
    cut = Recording.from_file(write(tmp_path / "a.wav")).to_cut()
    mixed = cut.mix(Recording.from_file(write(tmp_path / "b.wav")).to_cut(), snr=10)
    padded = [cut.pad(duration=2.0, direction=direction, preserve_id=True) for direction in ("left", "right", "both")]
    CutSet.from_cuts([*padded, mixed]).to_file(tmp_path / "m.jsonl")
    cuts, skipped = scan(tmp_path / "m.jsonl", tmp_path)
    assert [(cut.id, cut.duration) for cut in cuts] == [("a", 0.5)] * 3
    assert skipped == [(f"{tmp_path}/m.jsonl:{mixed.id}", "a MixedCut that is not part of a single recording")]


def test_a_manifest_that_is_not_of_these_files(tmp_path: Path) -> None:
    """Files resampled, replaced by longer or by shorter ones since the manifest was made."""
    recordings = [Recording.from_file(write(tmp_path / f"{i}.wav")) for i in range(5)]
    cuts = [recording.to_cut() for recording in recordings]
    cuts += [cuts[0].truncate(offset=0.1, duration=0.2), cuts[2].truncate(offset=0.3, duration=0.1)]
    CutSet.from_cuts(cuts).to_file(tmp_path / "m.jsonl")
    write(tmp_path / "0.wav", 22_050, 44_100)
    write(tmp_path / "1.wav", 8_000, 8_000)
    write(tmp_path / "2.wav", 4_000)
    write(tmp_path / "3.wav", 12_000)
    read, skipped = scan(tmp_path / "m.jsonl", tmp_path)
    assert [round(cut.duration, 3) for cut in read] == [0.5, 1.0, 0.75, 0.5, 0.2]
    assert [len(DECODER.decode(cut)) for cut in read] == [8000, 16_000, 12_000, 8000, 3200]
    reason = "of a recording at 16000 Hz, but the file has 0.25 s at 16000 Hz"
    assert [row.reason for row in skipped] == [f"it ends at {end} s {reason}" for end in ("0.50", "0.40")]


def test_a_corpus_of_a_manifest_with_equal_ids_opens(tmp_path: Path) -> None:
    recordings = [Recording.from_file(write(tmp_path / f"{i}.wav")) for i in range(6)]
    RecordingSet.from_recordings(recordings).to_file(tmp_path / "m.jsonl")
    text = (tmp_path / "m.jsonl").read_text()
    (tmp_path / "m.jsonl").write_text(text + text)
    corpus = open_corpus(CorpusConfig(str(tmp_path / "m.jsonl"), validation_share=0.3), DECODER)
    assert corpus.inventory.found == 12
    assert not {cut.id for cut in corpus.train} & {cut.id for cut in corpus.validation}
