"""Windows of long recordings: equal, complete, and sample for sample what the whole recording gives."""

import math

import numpy as np
import pytest
import soundfile
import torch

from distiller.audio.decoding import Decoder
from distiller.audio.windows import windows
from distiller.corpora.scanning import scan

decode = Decoder(min_samples=400).decode


def recording(path, seconds, rate, channels=1, **keys):
    """Noise and a glide, written in blocks: libsndfile's Vorbis encoder crashes on long ones."""
    time = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(0).normal(0, 0.05, (len(time), channels))
    values = noise + 0.2 * np.sin(2 * np.pi * (200 + 50 * time) * time)[:, None]
    with soundfile.SoundFile(path, "w", rate, channels, **keys) as file:
        for start in range(0, len(values), 20_000):
            file.write(values[start : start + 20_000])
    ((cut,), _) = scan(path, path.parent)
    return cut


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 22_254, 44_100, 48_000, 15_999])
@pytest.mark.parametrize("channels", [1, 2])
def test_windows_are_what_the_whole_recording_gives(tmp_path, rate, channels):
    cut = recording(tmp_path / "a.wav", 4.321, rate, channels, subtype="FLOAT")
    parts = windows(cut, 0.9)
    assert [part.id for part in parts] == [f"a.wav-{index}" for index in range(5)]
    assert max(part.duration for part in parts) - min(part.duration for part in parts) < 1.5 / 16_000
    assert all(part.duration <= 0.9 for part in parts)
    decoded = [decode(part) for part in parts]
    assert [len(samples) for samples in decoded] == [round(part.duration * 16_000) for part in parts]
    assert torch.equal(torch.cat(decoded), decode(cut))


@pytest.mark.parametrize(
    ("name", "keys", "off"),
    [
        ("a.flac", {}, 0),
        ("a.ogg", {}, 0),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}, 0),
        ("a.mp3", {}, 2e-7),  # libmpg123 sums in another order after seeking
        ("low.mp3", {"bitrate_mode": "CONSTANT", "compression_level": 0.999}, 2e-7),  # its frames need many before them
    ],
)
def test_windows_of_compressed_recordings(tmp_path, name, keys, off):
    cut = recording(tmp_path / name, 9.5, 48_000 if "opus" in name else 22_050, **keys)
    heard = torch.cat([decode(part) for part in windows(cut, 2.0)])
    whole = decode(cut)
    assert heard.shape == whole.shape
    assert (heard - whole).abs().max() <= off


def test_only_the_window_is_read(tmp_path, monkeypatch):
    """And a second before it."""
    read = []
    original = soundfile.SoundFile.read
    cut = recording(tmp_path / "a.flac", 30, 16_000)
    parts = windows(cut, 2.0)
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *args, **keys: read.append(keys) or original(*args, **keys))
    decode(parts[9])
    assert 3 * 16_000 <= read[0]["frames"] <= 3 * 16_000 + 100


def test_windows_of_a_part_of_a_recording(tmp_path):
    cut = recording(tmp_path / "a.flac", 5, 44_100).truncate(offset=1.00001, duration=3.3)
    assert torch.equal(torch.cat([decode(part) for part in windows(cut, 0.7)]), decode(cut))


@pytest.mark.parametrize("seconds", [0.1, 1.00003, 2.5])
def test_no_window_is_too_long_and_none_empty(tmp_path, seconds):
    cut = recording(tmp_path / "a.wav", 3.00004, 22_050)
    parts = windows(cut, seconds)
    total = math.ceil(int(3.00004 * 22_050) * 16_000 / 22_050)
    assert sum(round(part.duration * 16_000) for part in parts) == total
    assert all(seconds / 2 <= part.duration <= seconds for part in parts)
