"""`torchaudio.load`, `save` and `info` as they were before torchaudio 2.9 left them to torchcodec, with soundfile."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile
import torch
from torch import Tensor

BITS = {"PCM_16": 16, "PCM_24": 24, "PCM_32": 32, "PCM_U8": 8, "PCM_S8": 8, "FLOAT": 32, "DOUBLE": 64}


@dataclass
class AudioMetaData:
    """What torchaudio.info gave; `num_frames` are samples of each channel."""

    sample_rate: int
    num_frames: int
    num_channels: int
    bits_per_sample: int
    encoding: str


def load(
    uri: str | Path,
    frame_offset: int = 0,
    num_frames: int = -1,
    normalize: bool = True,
    channels_first: bool = True,
    **ignored: Any,
) -> tuple[Tensor, int]:
    """An audio file as a float32 tensor in [-1, 1] and its sample rate; (channel, sample) when `channels_first`.

    Args:
        normalize: False keeps 16-bit integers, as torchaudio did for 16-bit files.
    """
    dtype = "float32" if normalize else "int16"
    samples, rate = soundfile.read(str(uri), frames=num_frames, start=frame_offset, dtype=dtype, always_2d=True)
    audio = torch.from_numpy(samples)  # (sample, channel)
    return (audio.T.contiguous() if channels_first else audio), rate


def save(uri: str | Path, src: Tensor, sample_rate: int, channels_first: bool = True, **ignored: Any) -> None:
    """Write (channel, sample), or (sample, channel), in the format of the file's suffix."""
    audio = src.detach().cpu()
    if audio.ndim == 1:
        audio = audio[:, None]
    elif channels_first:
        audio = audio.T
    soundfile.write(str(uri), audio.numpy(), sample_rate)


def info(uri: str | Path, **ignored: Any) -> AudioMetaData:
    """What a file's header says."""
    header = soundfile.info(str(uri))
    return AudioMetaData(
        header.samplerate, header.frames, header.channels, BITS.get(header.subtype, 0), header.subtype or ""
    )
