"""A student as a streaming ONNX file: a chunk and the previous state in, hidden states and the new state out.

All sizes but the batch's are fixed. A memory that is not yet full is padded with zeros, which `known` masks.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from distiller.common.files import writing
from distiller.graphs.checks import checked, farthest, wavs
from distiller.graphs.onnx import StatesGraph, check_packages, filled_in, quietly
from upstream.attention import Memory, SelfAttention
from upstream.encoder import EncoderLayer
from upstream.errors import UserError
from upstream.extractor import FeatureExtractor
from upstream.onnx_stream import STATE, OnnxStream
from upstream.output import EncoderOutput
from upstream.running_norm import RunningMoments

OPSET = 18


class StepGraph(nn.Module):
    """The computation of the file, for one chunk of C frames of H samples each.

    In: waveforms (batch, C H), the next samples; frames (1,), valid frames of the chunk, fewer than C only at a wav's
    end; known (1,), frames in the memories; samples (batch, O), the preceding ones; past (batch, K, channel) of the
    positional convolution; with a group norm blocks (1,) and moments (batch, 3, channel) of `RunningMoments`; keys and
    values (batch, head, left, head_dim) of each layer with attention.

    Out: the hidden states, as in `StatesGraph`, and the new state, in the order of the inputs.
    """

    def __init__(self, graph: StatesGraph) -> None:
        super().__init__()
        self.states_graph, config = graph, graph.encoder.config
        if not config.chunk_frames:
            raise UserError(
                "--streaming needs a streaming student (student.attention=chunked), but this one needs the whole wav"
            )
        extractor = graph.encoder.feature_extractor
        assert isinstance(extractor, FeatureExtractor)
        self.overlap = extractor.field - extractor.hop
        moments = extractor.moments(torch.zeros(1, 0))
        self.channels = moments.known.shape[2] if isinstance(moments, RunningMoments) else 0  # with statistics
        layers = [layer for layer in graph.encoder.layers if isinstance(layer, EncoderLayer)]
        self.heads = [
            layer.attention.q_proj.out_features // config.head_dim if isinstance(layer.attention, SelfAttention) else 0
            for layer in layers
        ]

    def forward(self, waveforms: Tensor, frames: Tensor, known: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        encoder, config = self.states_graph.encoder, self.states_graph.encoder.config
        samples, past, *memories = state
        moments = RunningMoments(blocks=memories.pop(0), known=memories.pop(0)) if self.channels else None
        heard = torch.cat([samples, waveforms], dim=1)
        projected = encoder.feature_projection(encoder.feature_extractor.chunk(heard, moments))  # type: ignore[operator]
        chunk, left = config.chunk_frames, config.left_frames
        positions = torch.arange(left + chunk) - left  # of keys: the chunk's start at 0
        key_mask = ((positions >= -known) & (positions < frames))[None, None, None]
        states = projected + encoder.positional(projected, past=past)
        if not config.layer_norm_first:
            states = encoder.layer_norm(states)
        position_bias = None
        if encoder.relative_position is not None:
            position_bias = encoder.relative_position.last(chunk, left + chunk)
        hidden_states, kept = [states], [] if moments is None else [moments.blocks, moments.known]
        for heads, layer in zip(self.heads, encoder.layers, strict=True):
            memory = Memory(left)
            memory.kept = (memories.pop(0), memories.pop(0)) if heads else None
            states, _ = layer(states, key_mask, position_bias, False, memory if heads else None)
            hidden_states.append(states)
            kept += list(memory.kept or ())
        last = encoder.layer_norm(states) if config.layer_norm_first else states
        selected = self.states_graph.select(EncoderOutput(projected, hidden_states, last, frames))
        past = torch.cat([past, projected], dim=1)[:, chunk:]
        return selected, (known + frames).clamp(max=left), heard[:, -self.overlap :], past, *kept

    def state(self, batch: int) -> dict[str, Tensor]:
        """The state before a wav, by the names of the file's inputs; `OnnxStream` fills in the first samples."""
        config = self.states_graph.encoder.config
        zeros = {
            "known": torch.zeros(1, dtype=torch.int64),
            "samples": torch.zeros(batch, self.overlap),
            "past": torch.zeros(batch, config.positional_reach, config.embed_dim),
        }
        if self.channels:
            zeros |= {"blocks": torch.zeros(1, dtype=torch.int64), "moments": torch.zeros(batch, 3, self.channels)}
        for index, heads in enumerate(self.heads, start=1):
            for name in ("keys", "values") if heads else ():  # separate: tracing merges inputs that share a tensor
                zeros[f"{name}_{index}"] = torch.zeros(batch, heads, config.left_frames, config.head_dim)
        return zeros


def to_streaming_onnx(graph: StatesGraph, path: Path) -> float:
    """Write the file, run it on wavs chunk by chunk, and check it; returns the largest difference from PyTorch.

    Raises:
        UserError: a student that needs whole wavs, a deviation above 1e-4, a missing package, a disk that refuses.
    """
    check_packages("onnx", "onnxscript", "onnxruntime")
    step = StepGraph(graph).eval()
    config = graph.encoder.config
    with writing(path) as temporary:
        inputs = {"waveforms": 0.1 * torch.randn(2, config.chunk_frames * config.samples_per_frame)}
        inputs |= {"frames": torch.tensor([config.chunk_frames])} | step.state(2)
        batch = torch.export.Dim("batch", min=1, max=4096)
        of_batch = {0: batch}
        shapes = [None if name in ("frames", "known", "blocks") else of_batch for name in inputs]
        with quietly(), torch.no_grad():
            arguments = tuple(inputs.values())
            program = torch.export.export(
                step, arguments, dynamic_shapes=(*shapes[:3], tuple(shapes[3:])), strict=False,
            )  # fmt: skip
            names = [graph.output_name, *(f"{STATE}{name}" for name in list(inputs)[2:])]
            written = torch.onnx.export(
                program, arguments, dynamo=True, input_names=list(inputs), output_names=names, opset_version=OPSET,
                verbose=False,
            )  # fmt: skip
        filled_in(written, graph, temporary)
        return checked(_deviation(graph, OnnxStream(temporary)), path, "its states", "PyTorch's")


@torch.no_grad()
def _deviation(graph: StatesGraph, stream: OnnxStream) -> float:
    """Deviation of the states of streamed wavs from those of whole wavs."""
    largest = 0.0
    for waveform in wavs():
        stream.restart()
        parts = [stream(piece) for piece in waveform[None].split(1_111, dim=1)]
        streamed = torch.cat([*parts, stream.flush()], dim=-2)
        expected = graph.select(graph.encoder(waveform))
        if streamed.shape != expected.shape:
            raise UserError(f"its states have the shape {tuple(streamed.shape)}, not {tuple(expected.shape)}")
        largest = max(largest, farthest(expected, streamed))
    return largest
