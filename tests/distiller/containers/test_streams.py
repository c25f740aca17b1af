"""Files that hold more, or less, than their headers declare: all of their audio, or both durations."""

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, Recording

from distiller.audio.decoding import Decoder
from distiller.audio.windows import windows
from distiller.corpora.scanning import scan

decode = Decoder(min_samples=400).decode
RATE = 16_000
OPUS = {"format": "OGG", "subtype": "OPUS"}


def written(path: Path, seconds: float, rate: int = RATE, channels: int = 1, seed: int = 0, quiet: float = 0, **keys):
    """Noise, silent for a while at its beginning; returns its bytes."""
    values = np.random.default_rng(seed).normal(0, 0.1, (int(seconds * rate), channels))
    values[: int(quiet * rate)] = 0
    with soundfile.SoundFile(path, "w", rate, channels, **keys) as file:
        for start in range(0, len(values), 20_000):
            file.write(values[start : start + 20_000])
    return path.read_bytes()


def opened(path: Path):
    ((cut,), skipped) = scan(path, path.parent)
    assert skipped == []
    return cut


def part(path: Path, content: bytes, name: str = "part") -> torch.Tensor:
    other = path.with_stem(name)
    other.write_bytes(content)
    return decode(opened(other))


@pytest.mark.parametrize(("ending", "keys"), [("mp3", {}), ("ogg", {}), ("opus", OPUS), ("flac", {})])
@pytest.mark.parametrize("channels", [1, 2])
def test_joined_files_are_all_of_their_parts(tmp_path: Path, ending: str, keys: dict, channels: int) -> None:
    path = tmp_path / f"a.{ending}"
    pieces = [written(path, seconds, channels=channels, seed=i, **keys) for i, seconds in enumerate((2.5, 0.7, 1.9))]
    path.write_bytes(b"".join([*pieces, pieces[0]]))
    cut = opened(path)
    heard = [part(path, piece) for piece in [*pieces, pieces[0]]]
    assert torch.equal(decode(cut), torch.cat(heard))
    assert cut.duration == pytest.approx(sum(map(len, heard)) / RATE)
    in_windows = torch.cat([decode(window) for window in windows(cut, 0.8)])
    assert (in_windows - decode(cut)).abs().max() <= 2e-7


@pytest.mark.parametrize(("ending", "keys"), [("mp3", {}), ("ogg", {}), ("opus", OPUS), ("flac", {})])
def test_a_file_twice(tmp_path: Path, ending: str, keys: dict) -> None:
    """Both streams of an Ogg have the same number then."""
    content = written(tmp_path / f"a.{ending}", 3.0, **keys)
    (tmp_path / f"a.{ending}").write_bytes(2 * content)
    assert len(decode(opened(tmp_path / f"a.{ending}"))) == 96_000


@pytest.mark.parametrize("ending", ["mp3", "ogg", "flac"])
def test_joined_files_of_different_rates_have_both_durations(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_bytes(written(path, 2.0) + written(path, 1.0, rate=22_050))
    ((_, reason),) = scan(path, tmp_path)[1]
    assert reason == "its declared samples make 2.00 s, but it holds 3.00 s, joined from different rates or channels"


@pytest.mark.parametrize("quiet", [0.0, 2.0])
@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
def test_mp3_without_a_tag_or_with_a_wrong_one(tmp_path: Path, quiet: float, mode: str) -> None:
    """libsndfile would take the bit rate of the first frame for that of all."""
    path = tmp_path / "a.mp3"
    content = written(path, 6.0, quiet=quiet, bitrate_mode=mode)
    path.write_bytes(content[content.find(content[:2], 4) :] if b"Xing" in content[:200] else content)
    assert len(decode(opened(path))) == pytest.approx(6.0 * RATE, abs=3000)
    if b"Xing" in content[:200]:
        at = content.find(b"Xing")
        path.write_bytes(content[: at + 8] + struct.pack(">II", 20, 3000) + content[at + 16 :])
        assert len(decode(opened(path))) == pytest.approx(6.0 * RATE, abs=3000)


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("seconds", [3, 90])
def test_mp3_whose_tag_says_less(tmp_path: Path, seconds: int, share: float) -> None:
    """Its bytes are right: a few frames are looked at, and all of a short file."""
    content = bytearray(written(tmp_path / "a.mp3", seconds, 8000))
    at = content.find(b"Xing")
    frames = struct.unpack(">I", content[at + 8 : at + 12])[0]
    content[at + 8 : at + 12] = struct.pack(">I", int(frames * share))
    (tmp_path / "a.mp3").write_bytes(content)
    assert opened(tmp_path / "a.mp3").duration == pytest.approx(seconds, abs=0.3)


@pytest.mark.parametrize(
    "tail", [b"TAG" + bytes(125), b"APETAGEX" + struct.pack("<II", 2000, 5000) + bytes(5016), bytes(9999)]
)
def test_what_follows_the_audio_of_an_mp3_is_not_audio(tmp_path: Path, tail: bytes) -> None:
    content = written(tmp_path / "a.mp3", 2.0)
    before = decode(opened(tmp_path / "a.mp3"))
    (tmp_path / "a.mp3").write_bytes(b"ID3\4\0\0" + bytes([0, 0, 39, 16]) + b"\xff" * 5008 + content + tail)
    assert torch.equal(decode(opened(tmp_path / "a.mp3")), before)


@pytest.mark.parametrize("declared", [0, 1000, 30_000])
@pytest.mark.parametrize("joined", [False, True])
def test_flac_whose_header_says_less(tmp_path: Path, declared: int, joined: bool) -> None:
    """0 is what a program writes that does not know the length."""
    path = tmp_path / "a.flac"
    content = bytearray(written(path, 4.0))
    whole = decode(opened(path))
    content[21] &= 0xF0
    content[22:26] = struct.pack(">I", declared)
    path.write_bytes(content * (2 if joined else 1))
    cut = opened(path)
    assert torch.equal(decode(cut), torch.cat([whole] * (2 if joined else 1)))
    assert torch.equal(torch.cat([decode(window) for window in windows(cut, 0.9)]), decode(cut))


def test_flac_whose_header_says_more(tmp_path: Path) -> None:
    content = bytearray(written(tmp_path / "a.flac", 4.0))
    content[22:26] = struct.pack(">I", 100_000)
    (tmp_path / "a.flac").write_bytes(content)
    ((_, reason),) = scan(tmp_path / "a.flac", tmp_path)[1]
    assert reason == "its declared samples make 6.25 s, but it holds 4.00 s"


def test_wav_of_a_recorder_that_was_interrupted(tmp_path: Path) -> None:
    content = bytearray(written(tmp_path / "a.wav", 1.0))
    whole = decode(opened(tmp_path / "a.wav"))
    content[40:44] = bytes(4)
    (tmp_path / "a.wav").write_bytes(content)
    assert torch.equal(decode(opened(tmp_path / "a.wav")), whole)


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
def test_headers_that_are_right_are_believed(tmp_path: Path, rate: int, subtype: str) -> None:
    for index, seconds in enumerate((0.01, 0.2, 1.7)):
        written(tmp_path / f"{index}.flac", seconds, rate, 1 + index, subtype=subtype)
        if rate <= 48_000 and subtype == "PCM_16":
            written(tmp_path / f"{index}.mp3", seconds, rate, 1 + index % 2)
            written(tmp_path / f"{index}.ogg", seconds, rate, 1 + index)
    cuts, skipped = scan(tmp_path, tmp_path)
    assert skipped == []
    assert [cut.custom for cut in cuts] == [None] * len(cuts)


def test_a_manifest_of_joined_files(tmp_path: Path) -> None:
    content = written(tmp_path / "a.flac", 1.0)
    whole = Recording.from_file(tmp_path / "a.flac").to_cut()
    CutSet.from_cuts([whole, whole.truncate(offset=0.25, duration=0.5)]).to_file(tmp_path / "m.jsonl")
    (tmp_path / "a.flac").write_bytes(content + written(tmp_path / "b.flac", 0.5, seed=1))
    cuts, _ = scan(tmp_path / "m.jsonl", tmp_path)
    assert [len(decode(cut)) for cut in cuts] == [24_000, 8000]
    assert torch.equal(decode(cuts[0])[4000:12_000], decode(cuts[1]))
