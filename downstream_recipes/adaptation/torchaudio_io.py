"""`torchaudio.load` with soundfile, as it was before torchaudio 2.9 moved it to torchcodec."""

import os
from pathlib import Path
from typing import Any

import soundfile
import torch
from torch import Tensor


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
    path: Any = os.fsencode(uri)  # soundfile only accepts text that is UTF-8
    samples, rate = soundfile.read(path, frames=num_frames, start=frame_offset, dtype=dtype, always_2d=True)
    audio = torch.from_numpy(samples)  # (sample, channel)
    return (audio.T.contiguous() if channels_first else audio), rate
