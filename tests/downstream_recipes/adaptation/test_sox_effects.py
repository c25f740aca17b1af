import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from downstream_recipes.adaptation import torchaudio_io
from downstream_recipes.adaptation.sox_effects import apply_effects_file, apply_effects_tensor
from upstream.errors import UserError

RATE = 16000
SILENCE = ["silence", "1", "0.1", "0.1%", "-1", "0.1", "0.1%"]


def sox_silence(samples: np.ndarray, rate: int) -> list[float]:
    """SoX's state machine, sample by sample: a ring of squares, two hold-off buffers."""
    window, duration, threshold = rate // 50, rate // 10, 0.001
    ring, pointer, trimming, held, out = np.zeros(window), 0, True, [], []
    for sample in samples.tolist():
        ring[pointer] = sample * sample
        pointer = (pointer + 1) % window
        sound = np.sqrt(ring.sum() / window) > threshold
        if trimming:
            held = [*held, sample] if sound else []
            if len(held) >= duration:
                out, held, trimming = out + held, [], False
        elif sound:
            out, held = [*out, *held, sample], []
        else:
            held.append(sample)
            if len(held) >= duration:
                ring, held, trimming = np.zeros(window), [], True
    return out if trimming else out + held


def bursts(pattern: list[tuple[float, float]]) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.concatenate([level * rng.standard_normal(int(seconds * RATE)) for seconds, level in pattern])


@pytest.mark.parametrize(
    "pattern",
    [
        [(0.2, 0), (0.3, 0.1), (0.25, 0), (0.2, 0.05), (0.15, 1e-5)],
        [(0.3, 0.1), (0.09, 0), (0.3, 0.1)],  # a pause too short to be cut
        [(0.2, 0), (0.09, 0.1), (0.2, 0)],  # a click too short to be sound
        [(0.1, 0.1), (0.3, 0), (0.05, 0.1), (0.3, 0), (0.2, 0.0011)],
        [(0.3, 1e-5)],
        [(0.15, 0.0012), (0.4, 0.0008), (0.15, 0.0012)],  # around the threshold
    ],
)
def test_silence_is_cut_as_sox_does(pattern):
    samples = bursts(pattern)
    result, rate = apply_effects_tensor(torch.from_numpy(samples)[None], RATE, [SILENCE])
    expected = sox_silence(samples, RATE)
    assert rate == RATE
    assert result.shape == (1, len(expected))
    np.testing.assert_allclose(result[0].numpy(), np.array(expected), atol=1e-7)


def test_the_chain_of_speaker_verification(tmp_path: Path):
    tone = 0.3 * np.cos(2 * np.pi * 440 * np.arange(8000) / 8000)
    soundfile.write(tmp_path / "a.wav", np.stack([tone, tone / 2], axis=1), 8000, subtype="FLOAT")
    effects = [["channels", "1"], ["rate", "16000"], ["gain", "-3.0"], SILENCE]
    audio, rate = apply_effects_file(tmp_path / "a.wav", effects)
    assert (rate, tuple(audio.shape), audio.dtype) == (16000, (1, 16000), torch.float32)
    expected = 0.75 * 0.3 * 10 ** (-3 / 20) * np.cos(2 * np.pi * 440 * np.arange(16000) / 16000)
    np.testing.assert_allclose(audio[0, 500:-500].numpy(), expected[500:-500], atol=1e-3)


def test_the_simple_effects():
    audio = torch.tensor([[0.25, -0.5, 0.5, 0.0]])
    assert torch.allclose(apply_effects_tensor(audio, RATE, [["gain", "-6.0205999"]])[0], audio / 2)
    assert torch.allclose(apply_effects_tensor(audio, RATE, [["norm"]])[0], audio * 2)
    assert apply_effects_tensor(audio, 2, [["trim", "0.5", "1"]])[0].tolist() == [[-0.5, 0.5]]
    assert apply_effects_tensor(audio, RATE, [["channels", "2"]])[0].shape == (2, 4)
    assert apply_effects_tensor(audio.T, RATE, [["gain", "0"]], channels_first=False)[0].shape == (4, 1)
    with pytest.raises(UserError, match="'reverb' is not available; it must be one of channels"):
        apply_effects_tensor(audio, RATE, [["reverb"]])
    with pytest.raises(UserError, match="'silence' is only available for one channel"):
        apply_effects_tensor(audio.repeat(2, 1), RATE, [SILENCE])


def test_soundfile_replaces_torchaudio(tmp_path: Path):
    audio = torch.rand(2, 800) - 0.5
    soundfile.write(tmp_path / "a.wav", audio.T.numpy(), 16000)
    loaded, rate = torchaudio_io.load(tmp_path / "a.wav")
    assert rate == 16000
    assert torch.allclose(loaded, audio, atol=1e-4)
    assert torch.equal(torchaudio_io.load(tmp_path / "a.wav", 100, 50)[0], loaded[:, 100:150])
    assert torchaudio_io.load(tmp_path / "a.wav", channels_first=False)[0].shape == (800, 2)
    assert torchaudio_io.load(tmp_path / "a.wav", normalize=False)[0].dtype == torch.int16
    odd = (tmp_path / "a.wav").rename(tmp_path / os.fsdecode(b"\xff.wav"))  # soundfile would encode it as UTF-8
    assert torch.equal(torchaudio_io.load(odd)[0], loaded)
