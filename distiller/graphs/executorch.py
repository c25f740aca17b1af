"""A student as an ExecuTorch program (.pte) for phones: a wav of any length up to a limit in, hidden states out."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from distiller.common.files import writing
from distiller.graphs.checks import checked
from distiller.graphs.onnx import StatesGraph, compare, quietly
from distiller.graphs.unpadded import UnpaddedGraph
from upstream.config import SAMPLE_RATE
from upstream.errors import UserError
from upstream.onnx_encoder import Run
from upstream.waveforms import as_batch

INSTALL = "uv sync --group executorch"
SECONDS = 30.0  # of the longest wav, by default
LONGEST = "longest_samples"  # the method of the file that returns its limit


@dataclass(frozen=True)
class Written:
    """What is known about a written file."""

    output_name: str
    shortest: int  # samples of the shortest wav
    longest: int
    difference: float  # the largest deviation from PyTorch
    delegated: int  # operators that XNNPACK runs
    others: int

    def __str__(self) -> str:
        share = f"XNNPACK runs {self.delegated} of its {self.delegated + self.others} operators"
        takes = f"one wav (1, {self.shortest} to {self.longest} samples)"
        outputs = f"{self.output_name} and frame_lengths out"
        return f"{takes} in, {outputs}; {self.difference:.1e} at most from PyTorch; {share}"


def to_executorch(graph: StatesGraph, path: Path, longest: float) -> Written:
    """Write the file, run and check it before it is kept.

    Args:
        longest: seconds of the longest wav that the file takes.

    Raises:
        UserError: a deviation above 1e-4, a missing package, an encoder that drops frames, or a disk that refuses.
    """
    check_package()
    config, samples = graph.encoder.config, round(longest * SAMPLE_RATE)
    if config.frame_multiple > 1:
        raise UserError(
            f"{path} is not written: ExecuTorch export does not support encoders with frame_multiple above 1"
        )
    with _lowering():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner  # pyright: ignore[reportMissingImports]
        from executorch.devtools.backend_debug import get_delegation_info  # pyright: ignore[reportMissingImports]
        from executorch.exir import to_edge_transform_and_lower  # pyright: ignore[reportMissingImports]

        lowered = to_edge_transform_and_lower(
            _program(graph, samples), partitioner=[XnnpackPartitioner()], constant_methods={LONGEST: samples}
        )
        operators = get_delegation_info(lowered.exported_program().graph_module).delegation_by_operator
        content = lowered.to_executorch().buffer
    with writing(path) as temporary:
        temporary.write_bytes(content)
        difference = checked(compare(graph, program(temporary)).largest, path, "its states", "PyTorch's")
    named = [count for name, count in operators.items() if name.startswith("aten")]
    delegated, others = (sum(getattr(count, kind) for count in named) for kind in ("delegated", "non_delegated"))
    return Written(graph.output_name, config.min_samples, samples, difference, delegated, others)


def program(path: Path) -> Run:
    """ExecuTorch over a file, for any audio that `as_batch` takes, one wav at a time.

    Raises:
        UserError: executorch is not installed, does not fit this torch or cannot open the file; too long a wav.
    """
    check_package()
    from executorch.runtime import Runtime, Verification  # pyright: ignore[reportMissingImports]

    with _one_sentence(path):
        opened = Runtime.get().load_program(path, verification=Verification.Minimal)
        longest = int(opened.load_method(LONGEST).execute([])[0])  # type: ignore[union-attr]
        method: Any = opened.load_method("forward")

    def run(waveforms: Any, lengths: Any) -> tuple[Tensor, Tensor]:
        waveforms, lengths = as_batch(waveforms, lengths, torch.zeros(()), minimum=1)
        if (most := int(lengths.max())) > longest:
            raise UserError(f"a wav has {most} samples, but {path} takes at most {longest}")
        rows, counts = [], []
        for waveform, length in zip(waveforms, lengths.tolist(), strict=True):
            with _one_sentence(path):
                states, frames = method.execute([waveform[None, :length].contiguous()])
            rows.append(states.squeeze(-3).movedim(-2, 0).clone())  # (frame, ..., channel)
            counts.append(frames.clone())
        return pad_sequence(rows, batch_first=True).movedim(1, -2).movedim(0, -3), torch.cat(counts)

    return run


def check_package() -> None:
    """Raises: UserError: executorch is not installed."""
    if importlib.util.find_spec("executorch") is None:
        raise UserError(f"executorch is not installed; run {INSTALL}")


def _program(graph: StatesGraph, longest: int) -> torch.export.ExportedProgram:
    """The graph for a wav of any length up to the longest."""
    config = graph.encoder.config  # a single frame is a special case for tracing; the file takes one as well
    sample = torch.export.Dim("sample", min=config.min_samples + config.samples_per_frame, max=longest)
    exported = torch.export.export(
        UnpaddedGraph(graph).eval(),
        (torch.randn(1, SAMPLE_RATE),),
        dynamic_shapes={"waveforms": {1: sample}},
        strict=False,
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    # torch asserts that there are frames, with functions of sizes that ExecuTorch rejects
    for node in exported.graph.nodes:
        if node.op == "call_function" and "_assert_" in str(node.target):
            exported.graph.erase_node(node)
    exported.graph.eliminate_dead_code()
    return exported


@contextmanager
def _lowering() -> Iterator[None]:
    """What lowering needs: its schema compiler next to this Python, no asserts, and lengths of any size.

    With oneDNN, torch would choose a convolution by the size of its input, and so rule out other lengths.
    """
    folders = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    asserts = torch._dynamo.config.patch(do_not_emit_runtime_asserts=True)
    one_dnn = torch.backends.mkldnn.flags(enabled=False, allow_tf32=False)
    with quietly(), torch.no_grad(), mock.patch.dict(os.environ, PATH=folders), asserts, one_dnn:
        yield


@contextmanager
def _one_sentence(path: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        versions = f"this executorch and torch {torch.__version__}"
        raise UserError(f"{path} cannot be run by {versions}: {str(error).splitlines()[0]:.120}") from None
