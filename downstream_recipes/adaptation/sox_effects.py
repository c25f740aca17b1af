"""The SoX effects that SUPERB's tasks apply, in NumPy: channels, rate, gain, silence (and norm, trim).

torchaudio dropped `sox_effects` in 2.9; before that, it needed libsox. KS, QbE and ASV load every file through these.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from downstream_recipes.adaptation import torchaudio_io
from upstream.errors import UserError

Effects = Sequence[Sequence[str]]
Processed = tuple[np.ndarray, int]  # (channel, sample) and its rate


def apply_effects_file(
    path: str | Path, effects: Effects, normalize: bool = True, channels_first: bool = True, format: str | None = None
) -> tuple[Tensor, int]:
    """A file through a chain of effects: float32 (channel, sample), or (sample, channel), and the sample rate.

    Raises:
        UserError: an effect is not available here.
    """
    audio, rate = torchaudio_io.load(path)
    return apply_effects_tensor(audio if channels_first else audio.T, rate, effects, channels_first)


def apply_effects_tensor(
    tensor: Tensor, sample_rate: int, effects: Effects, channels_first: bool = True
) -> tuple[Tensor, int]:
    """As `apply_effects_file`, for a tensor: (channel, sample), or (sample, channel), and its rate."""
    audio = (tensor if channels_first else tensor.T).detach().cpu().numpy().astype(np.float64)  # (channel, sample)
    for name, *arguments in effects:
        if name not in EFFECTS:
            raise UserError(f"SoX effect '{name}' is not available; it must be one of {', '.join(EFFECTS)}")
        audio, sample_rate = EFFECTS[name](audio, sample_rate, *map(str, arguments))
    result = torch.from_numpy(audio.astype(np.float32))
    return (result if channels_first else result.T).contiguous(), sample_rate


def _channels(audio: np.ndarray, rate: int, count: str) -> Processed:
    if int(count) == 1:
        return audio.mean(axis=0, keepdims=True), rate
    if len(audio) in (1, int(count)):
        return np.repeat(audio, int(count) // len(audio), axis=0), rate
    raise UserError(f"SoX effect 'channels {count}' is not available for {len(audio)} channels, 'channels 1' is")


def _rate(audio: np.ndarray, rate: int, target: str) -> Processed:
    if int(target) == rate:
        return audio, rate
    import soxr  # comes with librosa; SoX's own resampler

    return soxr.resample(audio.T, rate, int(target), quality="HQ").T, int(target)


def _gain(audio: np.ndarray, rate: int, decibels: str) -> Processed:
    return np.clip(audio * 10 ** (float(decibels) / 20), -1, 1), rate


def _norm(audio: np.ndarray, rate: int, decibels: str = "0") -> Processed:
    peak = np.abs(audio).max(initial=0)
    return (audio if peak == 0 else audio / peak * 10 ** (float(decibels) / 20)), rate


def _trim(audio: np.ndarray, rate: int, start: str, length: str | None = None) -> Processed:
    begin = round(float(start) * rate)
    return audio[:, begin : None if length is None else begin + round(float(length) * rate)], rate


def _silence(audio: np.ndarray, rate: int, *arguments: str) -> Processed:
    """Cut silence at the start and, because `below_periods` is -1, every later silence.

    A sample is sound if the RMS of the 20 ms up to it exceeds the threshold. Audio starts with the first
    `above_seconds` of unbroken sound and stops before the first `below_seconds` of unbroken silence; then the RMS
    window is emptied and the search for sound starts again.
    """
    above_periods, above_seconds, above_percent, below_periods, below_seconds, below_percent = arguments
    if (above_periods, below_periods, len(audio)) != ("1", "-1", 1):
        raise UserError("SoX effect 'silence' is only available for one channel, one period above and -1 below")
    window = rate // 50
    energy = np.concatenate([[0.0], np.cumsum(audio[0] ** 2)])
    sound_run, silence_run = round(float(above_seconds) * rate), round(float(below_seconds) * rate)
    above, below = (float(percent.rstrip("%")) / 100 for percent in (above_percent, below_percent))
    kept, position, total = [], 0, audio.shape[1]
    while position < total:
        ends = np.arange(position + 1, total + 1)
        rms = np.sqrt(np.maximum(energy[ends] - energy[np.maximum(ends - window, position)], 0) / window)
        start = _first_run(rms > above, sound_run)
        if start is None:
            break
        stop = _first_run(rms[start + sound_run :] <= below, silence_run)
        if stop is None:
            kept.append(audio[:, position + start :])
            break
        end = position + start + sound_run + stop
        kept.append(audio[:, position + start : end])
        position = end + silence_run
    return (np.concatenate(kept, axis=1) if kept else audio[:, :0]), rate


def _first_run(holds: np.ndarray, length: int) -> int | None:
    """Where the first `length` consecutive True values begin."""
    changes = np.flatnonzero(np.diff(holds.astype(np.int8), prepend=0, append=0))
    for start, end in changes.reshape(-1, 2):
        if end - start >= length:
            return int(start)
    return None


EFFECTS = {"channels": _channels, "rate": _rate, "gain": _gain, "norm": _norm, "trim": _trim, "silence": _silence}
