"""One channel out of several, and audio that holds nothing."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from distiller.audio.decoding import Decoder, Undecodable, mono
from distiller.corpora.scanning import scan

decode = Decoder(min_samples=400).decode
RATE = 16_000


def written(path: Path, channels: list[np.ndarray], subtype: str = "PCM_16") -> torch.Tensor:
    soundfile.write(path, np.stack(channels, axis=1), RATE, subtype=subtype)
    ((cut,), _) = scan(path, path.parent)
    return decode(cut)


def noise(seed: int = 0, samples: int = 8000) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, samples)


@pytest.mark.parametrize(
    "others",
    [
        [lambda x: -x],  # exactly
        [lambda x: -x + 1e-5 * noise(1)],  # to rounding noise
        [lambda x: -0.9 * x],  # one of them a little quieter
        [lambda x: -x, lambda x: 0 * x],  # beside a silent channel
        [lambda x: -x + 0.25],  # with an offset
    ],
)
def test_channels_that_cancel_give_one_of_them(tmp_path: Path, others: list) -> None:
    heard = written(tmp_path / "a.wav", [noise(), *(other(noise()) for other in others)], "FLOAT")
    assert torch.equal(heard, torch.from_numpy(noise().astype(np.float32)))


@pytest.mark.parametrize(
    "channels",
    [
        [noise(0), noise(1)],  # unrelated
        [noise(0), noise(0)],
        [noise(0), 0 * noise(0)],  # one of them silent
        [noise(0), 1e-3 * noise(1)],
        [noise(0) + noise(1), noise(0) - noise(1)],  # a wide stereo image
        [noise(0), -0.5 * noise(0)],
        [noise(seed) for seed in range(64)],  # an array of microphones
    ],
)
def test_other_channels_give_their_mean(channels: list[np.ndarray]) -> None:
    values = np.stack(channels).astype(np.float32)
    assert np.array_equal(mono(values), values.mean(axis=0))


@pytest.mark.parametrize("level", [0.3, -1.0, 1e-4])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_constant_audio_is_set_aside(tmp_path: Path, level: float, channels: int) -> None:
    with pytest.raises(Undecodable, match=r"^all its samples are -?[\d.e-]+$"):
        written(tmp_path / "a.wav", [np.full(8000, level)] * channels, "FLOAT")


def test_a_quiet_voice_on_a_large_offset_is_audio(tmp_path: Path) -> None:
    assert len(written(tmp_path / "a.wav", [0.9 + 1e-4 * noise()], "FLOAT")) == 8000


def test_channels_that_cancel_to_a_constant_are_no_constant(tmp_path: Path) -> None:
    assert len(written(tmp_path / "a.wav", [0.5 + noise(), 0.5 - noise()], "FLOAT")) == 8000


def test_samples_that_overflow_while_they_are_resampled(tmp_path: Path) -> None:
    loud = np.full(2000, 3e38)
    loud[::7] = 1e38
    soundfile.write(tmp_path / "a.wav", loud, 999, subtype="FLOAT")
    ((cut,), _) = scan(tmp_path / "a.wav", tmp_path)
    with pytest.raises(Undecodable, match=r"^it holds NaN or infinite samples$"):
        decode(cut)
