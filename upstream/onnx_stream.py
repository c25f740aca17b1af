"""A streaming ONNX file: audio in pieces of any size in, states of complete chunks out."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import EncoderConfig
from .errors import UserError
from .onnx_encoder import open_session
from .streaming import next_samples

STATE = "next_"  # prefix of the outputs that become inputs of the next call
TYPES = {"tensor(float)": torch.float32, "tensor(int64)": torch.int64}


class OnnxStream:
    """A file written by `distiller/export.py --to onnx --streaming`, run by onnxruntime on the CPU.

    Args:
        batch: number of parallel wavs; each call takes audio of the same length for all of them.
        threads: of onnxruntime; 0: all cores.

    Raises:
        UserError: onnxruntime is not installed or cannot open the file, or it is not such a file.
    """

    def __init__(self, path: Path, batch: int = 1, threads: int = 0) -> None:
        self.session = open_session(path, threads)
        known = self.session.get_modelmeta().custom_metadata_map
        self.outputs = [value.name for value in self.session.get_outputs()]
        if "encoder" not in known or f"{STATE}samples" not in self.outputs:
            raise UserError(
                f"{path} is not a streaming model; export one with --to onnx --streaming from a "
                "student trained with student.attention=chunked"
            )
        self.config = EncoderConfig.from_dict(json.loads(known["encoder"]), str(path))
        self.batch = batch
        self.step = self.config.chunk_frames * self.config.samples_per_frame  # samples of a chunk
        self.restart()

    def restart(self) -> None:
        """Reset the state: the next audio is the start of another wav."""
        carried = [value for value in self.session.get_inputs() if value.name not in ("waveforms", "frames")]
        self.state = {value.name: torch.zeros(self._shape(value), dtype=TYPES[value.type]) for value in carried}
        self.overlap = self.state["samples"].shape[1]
        self.padding = (self.overlap + self.config.samples_per_frame - self.config.min_samples) // 2
        self.waiting = torch.zeros(self.batch, self.padding)
        self.begun, self.ended = False, False

    def __call__(self, waveforms: Any) -> Tensor:
        """The next samples, (batch, sample) -> states of the chunks they complete, (layer, batch, frame, channel)
        or (batch, frame, channel).

        Raises:
            UserError: as `as_batch`; another number of wavs, or wavs of different lengths; audio after `flush`.
        """
        samples = next_samples(waveforms, self.batch, self.ended, torch.zeros(()))
        self.waiting = torch.cat([self.waiting, samples], dim=1)
        parts = []
        while self._begin() and self.waiting.shape[1] >= self.step:
            parts.append(self._run(self.waiting[:, : self.step], self.config.chunk_frames))
            self.waiting = self.waiting[:, self.step :]
        return self._joined(parts)

    def flush(self) -> Tensor:
        """The states of the last, incomplete chunk. After this, only `restart` is allowed."""
        self.ended = True
        self.waiting = torch.nn.functional.pad(self.waiting, (0, self.padding))
        frames = self.waiting.shape[1] // self.config.samples_per_frame if self._begin() else 0
        padded = torch.nn.functional.pad(self.waiting, (0, self.step - self.waiting.shape[1]))
        return self._joined([self._run(padded, frames)[..., :frames, :]] if frames else [])

    def _begin(self) -> bool:
        """Whether the samples before the first chunk have arrived."""
        if not self.begun and self.waiting.shape[1] >= self.overlap:
            self.state["samples"], self.waiting = self.waiting[:, : self.overlap], self.waiting[:, self.overlap :]
            self.begun = True
        return self.begun

    def _run(self, waveforms: Tensor, frames: int) -> Tensor:
        inputs = {"waveforms": waveforms, "frames": torch.tensor([frames]), **self.state}
        found = self.session.run(None, {name: value.contiguous().numpy() for name, value in inputs.items()})
        by_name = dict(zip(self.outputs, map(torch.from_numpy, found), strict=True))
        self.state = {name: by_name.pop(f"{STATE}{name}") for name in self.state}
        (states,) = by_name.values()
        return states

    def _joined(self, parts: list[Tensor]) -> Tensor:
        if parts:
            return torch.cat(parts, dim=-2)
        *others, _, channels = self._shape(self.session.get_outputs()[0])
        return torch.zeros(*others, 0, channels)

    def _shape(self, value: Any) -> list[int]:
        """The shape of an input or output, where only the batch size is symbolic."""
        return [size if isinstance(size, int) else self.batch for size in value.shape]
