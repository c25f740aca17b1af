"""One export: load, convert, check, write."""

from collections.abc import Sequence
from pathlib import Path

from distiller.exporters import onnx
from distiller.exporters.card import transformers_card
from distiller.exporters.transformers import needs_own_code, to_transformers
from upstream.checkpoint import load


def export(
    checkpoint: str,
    to: str,
    output: Path,
    quantize: str | None = None,
    states: str = "all",
    weights: Sequence[float] | None = None,
    model_config: str | None = None,
) -> str:
    """Write `output`; returns a line that says how to open it and how close it is to the student.

    Args:
        checkpoint: anything that `upstream.checkpoint.load` opens.
        to: "transformers", "onnx" or "torch-export".
        quantize: "int8" for an ONNX file with 8-bit linear layers.
        states, weights: what a graph returns, as `onnx.graph_of`.
        model_config: the YAML of a STaR checkpoint.

    Raises:
        UserError: a checkpoint that cannot be opened, a deviation above 1e-4, or the disk refuses.
    """
    student = load(checkpoint, model_config)
    if to == "transformers":
        own_code = needs_own_code(student)
        difference = to_transformers(student, output, transformers_card(student, checkpoint, own_code))
        opened = "AutoModel.from_pretrained" + (" with trust_remote_code=True" if own_code else "")
        return f"{output}: {opened} opens it; largest difference of any hidden state {difference:.1e}"
    graph = onnx.graph_of(student, states, weights)
    if quantize:
        return onnx.quantized(graph, output)
    difference = (onnx.to_program if to == "torch-export" else onnx.to_onnx)(graph, output)
    inputs_and_outputs = f"waveforms and lengths in, {graph.output_name} and frame_lengths out"
    return f"{output}: {inputs_and_outputs}; {difference:.1e} at most from PyTorch"
