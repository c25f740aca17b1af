"""Files that hold more, or less, than their headers declare have a reason with both durations."""

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, Recording

from distiller.audio.decoding import Decoder
from distiller.audio.headers import Undecodable
from distiller.audio.windows import windows
from distiller.corpora.scanning import scan

decode = Decoder(min_samples=400).decode
RATE = 16_000
KINDS = {"mp3": {}, "ogg": {}, "opus": {"format": "OGG", "subtype": "OPUS"}, "flac": {}}


def written(path: Path, seconds: float, rate: int = RATE, **keys) -> bytes:
    """Noise; returns the file's bytes."""
    values = np.random.default_rng(0).normal(0, 0.1, int(seconds * rate))
    with soundfile.SoundFile(path, "w", rate, 1, **keys) as file:
        for start in range(0, len(values), 20_000):
            file.write(values[start : start + 20_000])
    return path.read_bytes()


def opened(path: Path):
    ((cut,), skipped) = scan(path, path.parent)
    assert skipped == []
    return cut


def durations(reason: object) -> list[float]:
    return [float(number) for number in re.findall(r"[\d.]+(?= s\b)", str(reason))]


@pytest.mark.parametrize(("ending", "keys"), KINDS.items())
@pytest.mark.parametrize("rate", [RATE, 48_000])
def test_joined_files_have_both_durations(tmp_path: Path, ending: str, keys: dict, rate: int) -> None:
    """libsndfile stops at the end of the first of them, without a word."""
    path = tmp_path / f"a.{ending}"
    path.write_bytes(written(path, 2.5, rate, **keys) + written(path, 4.0, rate, **keys))
    with pytest.raises(Undecodable) as refused:
        decode(opened(path))
    declared, held = durations(refused.value)
    assert declared == pytest.approx(2.5, abs=0.1)
    assert held == pytest.approx(6.5, rel=0.2)  # streams have bit rates of their own


def test_what_its_header_declares_of_a_long_joined_file_is_used(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    content = written(path, 9.0)
    path.write_bytes(2 * content)
    *others, last = windows(opened(path), 3.0)
    assert [len(decode(window)) for window in others] == [48_000, 48_000]
    with pytest.raises(Undecodable, match=r"declares 9.00 s, but it holds about 18.00 s"):
        decode(last)


@pytest.mark.parametrize("ending", KINDS)
def test_a_file_that_is_cut_off_gives_all_it_holds_or_has_both_durations(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    content = written(path, 4.0, **KINDS[ending])
    path.write_bytes(content[: len(content) * 6 // 10])
    cut = opened(path)
    if ending in ("ogg", "opus"):  # libsndfile finds the last page that is there
        assert 1.5 < len(decode(cut)) / RATE < 2.6
        return
    with pytest.raises(Undecodable) as refused:
        decode(cut)
    declared, held = durations(refused.value)
    assert declared == pytest.approx(4.0, abs=0.1)
    assert 1.5 < held < 2.6


def test_a_flac_from_a_pipe_does_not_say_how_long_it_is(tmp_path: Path) -> None:
    content = bytearray(written(tmp_path / "a.flac", 1.0))
    content[21:26] = bytes([content[21] & 0xF0, 0, 0, 0, 0])
    (tmp_path / "a.flac").write_bytes(content)
    ((_, reason),) = scan(tmp_path, tmp_path)[1]
    assert reason == "its header does not say how long it is"


@pytest.mark.parametrize("tail", [b"TAG" + bytes(125), b"APETAGEX" + bytes(20_000)])
def test_tags_are_not_audio(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "a.mp3"
    content = written(path, 2.0)
    picture = b"ID3\4\0\0" + bytes([0, 0, 78, 32]) + bytes(10_016)
    path.write_bytes(picture + content + tail)
    assert len(decode(opened(path))) == 2 * RATE


def test_chunks_after_the_samples_of_a_wav_are_not_audio(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    content = written(path, 1.0)
    path.write_bytes(content + b"LIST" + (100_000).to_bytes(4, "little") + bytes(100_000))
    assert len(decode(opened(path))) == RATE


def test_a_manifest_may_take_a_part_of_a_joined_file(tmp_path: Path) -> None:
    content = written(tmp_path / "a.flac", 2.0)
    cut = Recording.from_file(tmp_path / "a.flac").to_cut()
    CutSet.from_cuts([cut, cut.truncate(offset=0.25, duration=0.5)]).to_file(tmp_path / "m.jsonl")
    (tmp_path / "a.flac").write_bytes(2 * content)
    (complete, part), _ = scan(tmp_path / "m.jsonl", tmp_path)
    assert len(decode(part)) == 8000
    with pytest.raises(Undecodable, match="joined"):
        decode(complete)
