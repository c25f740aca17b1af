"""Audio in any common form as a batch of waveforms, for all entry points (encoder, chunks, s3prl, torch.hub)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .config import SAMPLE_RATE
from .errors import UserError, shown

FULL_SCALE = {torch.int8: 2**7, torch.uint8: 2**7, torch.int16: 2**15, torch.int32: 2**31}  # what audio files hold
MOST_CHANNELS = 8  # an axis this short holds channels, not samples
SHAPES = "(sample,), (batch, sample), (batch, 1, sample) or a list of wavs (sample,)"


def frame_mask(lengths: Tensor, frames: int, device: torch.device | None = None) -> Tensor:
    """True at valid frames: lengths (batch,) -> (batch, frame) on `device`, without waiting for it."""
    lengths = lengths.to(device or lengths.device, non_blocking=True)
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


def as_batch(audio: Any, lengths: Any, like: Tensor, minimum: int) -> tuple[Tensor, Tensor]:
    """Audio of any kind, 16 kHz and mono, as a batch.

    Integers are scaled as when reading audio files: int16 by 2^-15, int32 by 2^-31, int8 and (after subtracting 128)
    uint8 by 2^-7. In a traced graph the input must already be a batch of tensors.

    Args:
        audio: tensors, arrays or lists of numbers: a wav (sample,), (batch, sample), (batch, 1, sample), or a list of
            wavs of any lengths, each with or without a channel axis, (1, sample) or (sample, 1).
        lengths: (batch,) valid samples of each wav; None: all of them. Best on the CPU, where they are checked.
        like: a weight; the batch gets its device, and its type if that is wider than float32.
        minimum: samples of the shortest wav allowed.

    Returns:
        waveforms: (batch, sample), zero after each wav's end.
        lengths: (batch,) int64, on the CPU.

    Raises:
        UserError: not audio, or too short; NaN or infinite samples, except on a GPU, which the check would have to wait
            for; lengths that do not fit.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    if torch.compiler.is_compiling() and isinstance(audio, Tensor):
        lengths = torch.full(audio.shape[:1], audio.shape[-1]) if lengths is None else lengths
        padding = ~frame_mask(lengths, audio.shape[1], audio.device)
        return audio.to(dtype).masked_fill(padding, 0.0), lengths
    if isinstance(audio, (list, tuple)) and audio and not isinstance(audio[0], (int, float, np.number)):
        wavs = [_wav(wav, f"wav {index}") for index, wav in enumerate(audio)]
        samples = torch.tensor([len(wav) for wav in wavs])
        on_cpu = all(wav.device.type == "cpu" for wav in wavs)
        waveforms = pad_sequence([wav.to(dtype).to(like.device) for wav in wavs], batch_first=True)
    else:
        waveforms = _batch(audio)
        samples = torch.full(waveforms.shape[:1], waveforms.shape[1])
        on_cpu = waveforms.device.type == "cpu"
        waveforms = waveforms.to(dtype).to(like.device)
    lengths = samples if lengths is None else _lengths(lengths, samples)
    if int(lengths.min()) < minimum:
        frame = ", one frame" if minimum > 1 else ""
        raise UserError(f"a wav has {int(lengths.min())} samples, but it must have at least {minimum}{frame}")
    if int(lengths.min()) < waveforms.shape[1]:
        waveforms = waveforms.masked_fill(~frame_mask(lengths, waveforms.shape[1], waveforms.device), 0.0)
    if on_cpu and not bool((finite := waveforms.isfinite().all(dim=1)).all()):
        raise UserError(f"wav {int(finite.int().argmin())} holds NaN or infinite samples")
    return waveforms, lengths


def _batch(audio: Any) -> Tensor:
    """A tensor, an array or a list of numbers as (batch, sample)."""
    waveforms = _floating(audio, "the audio")
    if waveforms.ndim == 1:
        waveforms = waveforms[None]
    if waveforms.ndim == 3 and waveforms.shape[1] == 1:
        waveforms = waveforms[:, 0]
    if waveforms.ndim == 2 and waveforms.shape[1] <= MOST_CHANNELS < waveforms.shape[0]:
        return _wav(waveforms, "the audio")[None]  # (sample, channel)
    if waveforms.ndim != 2 or not len(waveforms):
        raise UserError(f"the audio has shape {tuple(waveforms.shape)}, but it must be mono, {SHAPES}")
    return waveforms


def _wav(audio: Any, name: str) -> Tensor:
    """One wav of a list as (sample,)."""
    wav = _floating(audio, name)
    if wav.ndim == 2 and 1 in wav.shape:  # one channel: (1, sample) from torchaudio, (sample, 1) from soundfile
        wav = wav.flatten()
    if wav.ndim != 1:
        raise UserError(f"{name} has shape {tuple(wav.shape)}, but it must be mono, (sample,)")
    return wav


def _floating(audio: Any, name: str) -> Tensor:
    """Floating-point samples; integers scaled to -1..1."""
    samples = _tensor(audio, name)
    if samples.is_floating_point():
        return samples
    if samples.dtype not in FULL_SCALE:
        kind = str(samples.dtype).removeprefix("torch.")
        raise UserError(f"{name} holds {kind} numbers, but they must be floating-point, int16, int32, int8 or uint8")
    offset = 128.0 if samples.dtype == torch.uint8 else 0.0
    return (samples.double() if samples.dtype == torch.int32 else samples.float()).sub(offset) / FULL_SCALE[
        samples.dtype
    ]


def _lengths(lengths: Any, samples: Tensor) -> Tensor:
    """`lengths` as (batch,) int64 on the CPU, none greater than the wav's `samples`."""
    given = _tensor(lengths, "the list of lengths").cpu()
    if given.shape != samples.shape:
        shapes = f"{tuple(given.shape)}, but must be (batch,), here {tuple(samples.shape)}"
        raise UserError(f"the lengths have shape {shapes}")
    whole = given.long()
    if given.dtype == torch.bool or bool((whole != given).any()):
        raise UserError(f"the lengths are {shown(given.tolist())}, but they must be whole numbers of samples")
    if bool((whole > samples).any()):
        row = int((whole - samples).argmax())
        raise UserError(f"a length is {int(whole[row])} samples, but its wav has {int(samples[row])}")
    return whole


def _tensor(value: Any, name: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        array = np.array(value, order="C")  # a copy, since tensors cannot share read-only or reversed memory
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise UserError(f"{name} is {shown(value)}, but it must be a tensor, an array or a list of numbers") from None


def up_to(waveforms: Tensor, lengths: Tensor, samples: int) -> Tensor:
    """(batch, sample) cut to `samples`, the most that a wav may have; only padding is cut off.

    Raises:
        UserError: a longer wav.
    """
    if (longest := int(lengths.max())) > samples:
        seconds = samples / SAMPLE_RATE
        raise UserError(
            f"a wav has {longest / SAMPLE_RATE:.2f} s, but this encoder takes at most {seconds:g} s (split longer "
            f"ones, in a recipe with corpus.max_seconds={seconds:g} and corpus.window_seconds={seconds:g})"
        )
    return waveforms[:, :samples]


def centred(waveforms: Tensor, lengths: Tensor) -> Tensor:
    """Zero mean over each wav's valid samples, zeros elsewhere; (batch, sample) both ways."""
    mask = frame_mask(lengths, waveforms.shape[1], waveforms.device)
    count = lengths.to(waveforms.device, non_blocking=True)[:, None]
    for _ in range(2):  # the second pass removes what rounding left of a large offset
        waveforms = (waveforms - waveforms.sum(dim=1, keepdim=True) / count) * mask  # padding is already zero
    return waveforms


def normalize_waveforms(waveforms: Tensor, lengths: Tensor, eps: float = 1e-7) -> Tensor:
    """Zero mean and unit variance over each wav's valid samples, zeros elsewhere; (batch, sample) both ways."""
    samples = centred(
        waveforms.to(torch.promote_types(waveforms.dtype, torch.float32)), lengths
    )  # sums overflow float16
    count = lengths.to(waveforms.device, non_blocking=True)[:, None]
    variance = samples.square().sum(dim=1, keepdim=True) / count
    return (samples / torch.sqrt(variance + eps)).to(waveforms.dtype)
