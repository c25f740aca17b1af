"""One of our ONNX files in place of an encoder, so that the shipped model can be scored, in 8 bits too."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .config import EncoderConfig
from .encoder import EncoderOutput
from .errors import UserError
from .waveforms import as_batch

SUFFIX = ".onnx"
STATES = "hidden_states"  # the output name of a file that returns all of them

Run = Callable[[Any, Any], tuple[Tensor, Tensor]]  # (waveforms, lengths) -> (states, frame lengths)


class OnnxEncoder(nn.Module):
    """The hidden states of a file that `distiller/export.py --to onnx` wrote, computed by onnxruntime on the CPU.

    Args:
        threads: of onnxruntime; 0: all cores.

    Raises:
        UserError: onnxruntime is not installed or cannot open the file, or it does not hold all hidden states.
    """

    digest: Tensor  # of the file, to tell two of them apart

    def __init__(self, path: Path, threads: int = 0) -> None:
        super().__init__()
        opened = open_session(path, threads)
        known, outputs = opened.get_modelmeta().custom_metadata_map, {value.name for value in opened.get_outputs()}
        if "encoder" not in known or STATES not in outputs:
            raise UserError(f"{path} does not hold all hidden states; export it with --to onnx and without --states")
        self.config = EncoderConfig.from_dict(json.loads(known["encoder"]), str(path))
        if self.config.layer_norm_first:
            raise UserError(f"{path} is a pre-LN encoder, but the file lacks its last state after the final norm")
        self.run = _runner(opened, path)
        self.exported_parameters = int(known["parameters"])
        self.like = nn.Parameter(torch.empty(0), requires_grad=False)  # dtype and device of the input
        self.register_buffer(
            "digest", torch.tensor(list(hashlib.sha256(path.read_bytes()).digest()), dtype=torch.uint8)
        )

    def forward(self, waveforms: Any, lengths: Any = None) -> EncoderOutput:
        """As `SpeechEncoder.forward`, except that the file has no P: F^0 takes its place."""
        waveforms, lengths = as_batch(waveforms, lengths, self.like, self.config.min_samples)
        states, frame_lengths = self.run(waveforms.cpu(), lengths)
        layers = list(states.to(waveforms.device))
        return EncoderOutput(
            projected=layers[0], hidden_states=layers, last_hidden_state=layers[-1], frame_lengths=frame_lengths
        )


def open_session(path: Path, threads: int) -> Any:
    """An onnxruntime session of a file, on the CPU.

    Raises:
        UserError: onnxruntime is not installed or cannot open the file.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError("onnxruntime is not installed; run uv sync --group export") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own exception types
        raise UserError(f"{path} cannot be opened by onnxruntime: {str(error).splitlines()[0]:.120}") from None


def session(path: Path, threads: int = 0) -> Run:
    """onnxruntime over a file, on the CPU, for any audio that `as_batch` takes; 0 threads: all cores.

    Raises:
        UserError: onnxruntime cannot open the file, or it is not an export of this project.
    """
    return _runner(open_session(path, threads), path)


def _runner(opened: Any, path: Path) -> Run:
    names = {value.name for value in opened.get_inputs()}
    if names != {"waveforms", "lengths"}:
        raise UserError(f"{path} has the inputs {', '.join(sorted(names))}, but they must be waveforms and lengths")

    def run(waveforms: Any, lengths: Any) -> tuple[Tensor, Tensor]:
        waveforms, lengths = as_batch(waveforms, lengths, torch.zeros(()), minimum=1)
        states, frame_lengths = opened.run(None, {"waveforms": waveforms.numpy(), "lengths": lengths.numpy()})
        return torch.from_numpy(states), torch.from_numpy(np.asarray(frame_lengths))

    return run


def metadata(path: Path) -> dict[str, str]:
    """The encoder's configuration and its number of parameters, which the export stored with the graph.

    Raises:
        UserError: as `open_session`.
    """
    return open_session(path, threads=1).get_modelmeta().custom_metadata_map
