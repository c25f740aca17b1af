"""ONNX files in 8 bits with scales measured on audio beforehand."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from distiller.common.files import writing
from distiller.common.progress import progress
from distiller.graphs.checks import one_thread
from distiller.graphs.eight_bits import OPSET, Range, in_eight_bits, linear_layers
from distiller.graphs.onnx import StatesGraph, check_packages, compare, eight_bit_line, save_onnx, seconds_each
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError
from upstream.onnx_encoder import session

LARGEST_ERROR = 0.1  # of the states, relative, on audio that was not calibrated on; trained students have 0.01 to 0.02
HELD_OUT = 3  # wavs that the file is checked on


def statically_quantized(graph: StatesGraph, path: Path, audio: Sequence[Tensor]) -> str:
    """Write the file with linear layers and convolutions in 8 bits, activations too.

    Args:
        audio: wavs, (sample,) each; the file is checked on the first three, and activation ranges are measured on the
            others. With fewer than six wavs, all are used for both.

    Returns:
        A line with its deviation from the student and its speed.

    Raises:
        UserError: a relative error of the states above 0.1, a missing package, or a disk that refuses.
    """
    check_packages("onnx", "onnxscript", "onnxruntime")
    enough = len(audio) >= 2 * HELD_OUT
    held_out, measured = (audio[:HELD_OUT], audio[HELD_OUT:]) if enough else (audio, audio)
    encoder = in_eight_bits(graph.encoder, input_ranges(graph.encoder, measured))
    with writing(path) as temporary:
        save_onnx(graph, temporary, StatesGraph(encoder, graph.states, graph.weights, graph.head), OPSET)
        run = session(temporary, threads=1)
        deviation = compare(graph, run, held_out)
        if not (math.isfinite(deviation.largest) and deviation.relative <= LARGEST_ERROR):
            raise UserError(
                f"{path} is not written: the relative error of its states is {deviation.relative:.2g}, but at most "
                f"{LARGEST_ERROR:g} is allowed; the audio of --calibrate should resemble the student's later input"
            )
        with one_thread():
            full, eight_bit = seconds_each([graph, run])
    return eight_bit_line(deviation, full, eight_bit, "in 32 bits by PyTorch")


@torch.inference_mode()
def input_ranges(encoder: SpeechEncoder, audio: Sequence[Tensor]) -> dict[str, Range]:
    """The lowest and the highest input of each linear layer over all frames of these wavs, by the layer's name."""
    names: dict[nn.Module, str] = {layer: name for name, layer in linear_layers(encoder).items()}
    ranges: dict[str, Range] = dict.fromkeys(names.values(), (0.0, 0.0))

    def widen(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        low, high = ranges[names[layer]]
        ranges[names[layer]] = min(low, float(inputs[0].min())), max(high, float(inputs[0].max()))

    hooks = [layer.register_forward_pre_hook(widen) for layer in names]
    try:
        for wav in progress(audio, "Calibrating"):  # one by one: no frame is padding
            encoder(wav[None])
    finally:
        for hook in hooks:
            hook.remove()
    return ranges
