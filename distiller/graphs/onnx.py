"""A student as one ONNX file or `torch.export` program: waveforms and lengths in, hidden states out, of any size."""

import importlib.util
import io
import json
import logging
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from distiller.common.files import writing
from distiller.common.provenance import TEN_SECONDS, parameter_count
from distiller.finetuning.recognizer import Recognizer
from distiller.graphs.blocked import in_blocks
from distiller.graphs.checks import checked, farthest, temporary_folder, wavs
from upstream.encoder import EncoderOutput, SpeechEncoder
from upstream.errors import UserError, require
from upstream.onnx_encoder import Run, session

OPSET = 18
QUANTIZED = ["MatMul", "Gemm"]  # linear layers; 8-bit convolutions are slower than 32-bit ones in onnxruntime
LONGEST = 2**24  # samples that the graph declares as its limit, 17 minutes


class StatesGraph(nn.Module):
    """The computation of the file: (waveforms, lengths) -> (states, frame_lengths).

    states: "all": F^0..F^L, (layer, batch, frame, channel); "weighted": their sum with `weights`; "last": the last
    hidden state; "logits": a recogniser's; the last three (batch, frame, channel). Padded frames are finite, arbitrary.
    """

    def __init__(
        self, encoder: SpeechEncoder, states: str, weights: Sequence[float] = (), head: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.encoder, self.states, self.head = encoder, states, head
        self.weights = tuple(weights)
        self.vocabulary: Any = None  # a `Vocabulary`, of logits

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        output = self.encoder(waveforms, lengths)
        return self.select(output), output.frame_lengths

    def select(self, output: EncoderOutput) -> Tensor:
        if self.states == "all":
            return torch.stack(output.hidden_states)
        if self.states == "last":
            return output.last_hidden_state
        if self.states == "logits" and self.head is not None:
            return self.head(output.last_hidden_state)
        pairs = zip(self.weights, output.hidden_states, strict=True)
        return torch.stack([weight * states for weight, states in pairs if weight]).sum(dim=0)

    @property
    def output_name(self) -> str:
        names = {"all": "hidden_states", "weighted": "weighted_states", "last": "last_hidden_state"}
        return names.get(self.states, self.states)


def graph_of(
    student: SpeechEncoder, states: str, weights: Sequence[float] | None, recognizer: Recognizer | None = None
) -> StatesGraph:
    """The graph of a student.

    Args:
        states: "all", "weighted", "last" or "logits".
        weights: of F^0..F^L for weighted states; equal ones by default.
        recognizer: whose encoder the student is, for logits.

    Raises:
        UserError: weights that do not fit the student's layers, or are not finite; logits of a student without a head.
    """
    count = student.config.num_layers + 1
    weights = [1 / count] * count if weights is None else weights
    usable = len(weights) == count and any(weights) and all(map(math.isfinite, weights))
    allowed = f"{count} finite numbers, one for each of F^0..F^{count - 1}, not all 0"
    require(usable or states != "weighted", "--weights", weights, allowed)
    require(
        recognizer is not None or states != "logits",
        "--states",
        states,
        "all, weighted or last, since only a recogniser has logits",
    )
    scored = recognizer if states == "logits" else None
    graph = StatesGraph(student.eval(), states, weights, scored and scored.head).eval()
    graph.vocabulary = scored and scored.vocabulary
    return graph


def export_program(graph: StatesGraph) -> torch.export.ExportedProgram:
    """The graph as a program for batches and times of any size."""
    config = graph.encoder.config  # a single frame is a special case for tracing, so it gets two or more
    batch = torch.export.Dim("batch", min=1, max=4096)
    sample = torch.export.Dim("sample", min=config.min_samples + config.samples_per_frame, max=LONGEST)
    with quietly(), torch.no_grad():
        return torch.export.export(
            StatesGraph(in_blocks(graph.encoder), graph.states, graph.weights, graph.head).eval(),
            _example(),
            dynamic_shapes={"waveforms": {0: batch, 1: sample}, "lengths": {0: batch}},
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,  # guards on frame counts hold, but it cannot prove that
        )


def to_onnx(graph: StatesGraph, path: Path) -> float:
    """Write the file, run and check it before it is kept; returns the largest difference from PyTorch.

    Raises:
        UserError: a deviation above 1e-4, a missing package, or a disk that refuses.
    """
    check_packages("onnx", "onnxscript", "onnxruntime")
    with writing(path) as temporary:
        save_onnx(graph, temporary, graph, OPSET)
        return checked(compare(graph, session(temporary)).largest, path, "its states", "PyTorch's")


def save_onnx(graph: StatesGraph, path: Path, computed: StatesGraph, opset: int) -> None:
    """Write the file, unchecked.

    Args:
        graph: describes the file's content in its metadata.
        computed: what the file computes: `graph`, possibly in other arithmetic.
    """
    with quietly(), torch.no_grad():
        program = torch.onnx.export(
            export_program(computed),
            _example(),
            dynamo=True,
            input_names=["waveforms", "lengths"],
            output_names=[graph.output_name, "frame_lengths"],
            opset_version=opset,
            verbose=False,
        )
    filled_in(program, graph, path)


def filled_in(program: Any, graph: StatesGraph, path: Path) -> None:
    """Write the result of `torch.onnx.export`, with metadata about its content."""
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces, with the paths of this machine
    program.model.metadata_props["encoder"] = json.dumps(graph.encoder.config.to_dict())
    program.model.metadata_props["parameters"] = str(parameter_count(graph))
    if graph.vocabulary is not None:
        program.model.metadata_props["vocabulary"] = json.dumps(graph.vocabulary.to_dict())
    program.save(path, external_data=False)


@dataclass(frozen=True)
class Deviation:
    """Deviation of a graph's states from the student's, over valid frames of some wavs, alone and in a batch."""

    largest: float  # infinite where a state is not finite
    relative: float  # |difference| / |states|, Euclidean over everything
    cosine: float  # lowest mean over a wav's frames


def compare(graph: StatesGraph, run: Run, audio: Sequence[Tensor] | None = None) -> Deviation:
    """Deviation of `run` from the encoder, of wavs in a batch and alone.

    Args:
        audio: the wavs, (sample,) each; by default three of noise.

    Raises:
        UserError: frame lengths differ from the encoder's.
    """
    audio = wavs() if audio is None else audio
    batch = (pad_sequence(list(audio), batch_first=True), torch.tensor(list(map(len, audio))))
    alone = [(wav[None], torch.tensor([len(wav)])) for wav in audio]
    largest, squares, norm, cosines = 0.0, 0.0, 0.0, []
    for waveforms, lengths in [batch, *alone]:
        with torch.no_grad():
            states, frame_lengths = run(waveforms, lengths)
            expected = graph.encoder(waveforms, lengths)
            reference = graph.select(expected)
        if not torch.equal(frame_lengths, expected.frame_lengths):
            raise UserError(f"frame lengths are {frame_lengths.tolist()}, not {expected.frame_lengths.tolist()}")
        for row, frames in enumerate(frame_lengths.tolist()):
            ours, theirs = reference[..., row, :frames, :], states[..., row, :frames, :]
            largest = max(largest, farthest(ours, theirs))
            squares += float((ours - theirs).square().sum())
            norm += float(ours.square().sum())
            cosines.append(float(torch.cosine_similarity(ours, theirs, dim=-1).mean()))
    return Deviation(largest, (squares / norm) ** 0.5, min(cosines))


def to_program(graph: StatesGraph, path: Path) -> float:
    """Write a `torch.export` program (.pt2), load and check it before it is kept; returns the largest difference.

    Raises:
        UserError: a deviation above 1e-4, or a disk that refuses.
    """
    program = export_program(graph)
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # it contains the paths of this machine
    with writing(path) as temporary:
        with quietly():
            torch.export.save(program, content := io.BytesIO())  # its own writer reports a full disk in 40 lines
            temporary.write_bytes(content.getvalue())
            run = torch.export.load(temporary).module()
        return checked(compare(graph, run).largest, path, "its states", "the student's")


def quantized(graph: StatesGraph, path: Path) -> str:
    """Write the file with linear layers in 8 bits: weights quantised per channel, activations at run time.

    Returns:
        A line with its deviation from the student and its speed.

    Raises:
        UserError: states that are not finite, a missing package, or a disk that refuses.
    """
    check_packages("onnx", "onnxscript", "onnxruntime")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with temporary_folder(path) as folder:
        full_precision = folder / "fp32.onnx"
        to_onnx(graph, full_precision)
        with writing(path) as temporary:
            with quietly():
                kinds = {"op_types_to_quantize": QUANTIZED, "weight_type": QuantType.QInt8}
                quantize_dynamic(full_precision, temporary, per_channel=True, **kinds)
            run = session(temporary, threads=1)
            deviation = compare(graph, run)
            if not math.isfinite(deviation.largest):
                raise UserError(f"{path} is not written: in 8 bits its states are not finite")
            full, eight_bit = seconds_each([session(full_precision, threads=1), run])
    return eight_bit_line(deviation, full, eight_bit, "in 32 bits")


def eight_bit_line(deviation: Deviation, full: float, eight_bit: float, reference: str) -> str:
    """The line about an 8-bit file, which takes `eight_bit` seconds where `reference` takes `full`."""
    return (
        f"relative error {deviation.relative:.3f}, mean cosine of a wav at least {deviation.cosine:.4f}, "
        f"largest difference {deviation.largest:.2g}; 10 s of audio in {eight_bit:.3f} s on one thread "
        f"({full:.3f} s {reference}, {full / eight_bit:.2f} times faster)"
    )


def seconds_each(runs: Sequence[Run], rounds: int = 7) -> list[float]:
    """Median time of each for 10 s of audio, interleaved so that all see the same load on the machine."""
    waveforms = 0.1 * torch.randn(1, TEN_SECONDS, generator=torch.Generator().manual_seed(0))
    taken: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds + 1):
        for run, times in zip(runs, taken, strict=True):
            start = time.perf_counter()
            run(waveforms, torch.tensor([TEN_SECONDS]))
            times.append(time.perf_counter() - start)
    return [median(times[1:]) for times in taken]  # the first is warm-up


def check_packages(*packages: str) -> None:
    """Raises: UserError: a package that exports need is not installed."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(f"{' and '.join(missing)} {verb} not installed; run uv sync --group export")


def _example() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 16_000), torch.tensor([16_000, 11_231])


@contextmanager
def quietly() -> Iterator[None]:
    """Silences warnings of the exporters that no user can act on."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
