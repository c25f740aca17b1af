"""One export: load, convert, check, write."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from distiller.common.provenance import parameter_count
from distiller.exporters.calibration import calibration_audio
from distiller.exporters.card import student_files, transformers_card
from distiller.exporters.fine_tuned import open_student
from distiller.exporters.hub import preview, push
from distiller.exporters.transformers import needs_own_code, to_transformers
from distiller.graphs import executorch, onnx
from distiller.graphs.static import statically_quantized
from distiller.graphs.streaming import to_streaming_onnx
from upstream.checkpoint import save
from upstream.errors import UserError


def export(
    checkpoint: str,
    to: str,
    output: Path | None,
    quantize: str | None = None,
    calibrate: str | None = None,
    longest: float | None = None,
    streaming: bool = False,
    states: str | None = None,
    weights: Sequence[float] | None = None,
    model_config: str | None = None,
    student: str | None = None,
    push_to_hub: str | None = None,
    upload: bool = False,
    private: bool = False,
) -> str:
    """Write `output`; returns a line about how to open it and how close it is to the student.

    Args:
        checkpoint: anything that `upstream.checkpoint.load` opens, or s3prl's dev-best.ckpt with a fine-tuned upstream.
        to: "student", "transformers", "onnx", "executorch" or "torch-export".
        quantize: "int8" for an ONNX file with 8-bit linear layers; "static-int8", calibrated on the corpus `calibrate`.
        longest: seconds of the longest wav that an ExecuTorch program accepts; by default 30.
        streaming: an ONNX file that takes a chunk of audio and the previous state.
        states, weights: what a graph returns, as `onnx.graph_of`; by default all states, or a recogniser's logits.
        model_config: the YAML of a STaR checkpoint.
        student: what s3prl fine-tuned, if it is no longer where s3prl found it.
        push_to_hub: ORG/NAME, for a folder for `transformers`, which need not be kept: `output` may be None.
        upload, private: whether to upload it rather than only show what would be uploaded, and as a private model.

    Raises:
        UserError: a checkpoint that cannot be opened, a deviation above 1e-4 (static-int8: 0.1), disk or hub refuse.
    """
    if push_to_hub is not None:
        with tempfile.TemporaryDirectory() as temporary:
            folder = output or Path(temporary) / "student"
            line = export(checkpoint, to, folder, model_config=model_config, student=student)
            published = push(folder, push_to_hub, private) if upload else preview(folder, push_to_hub)
        return f"{line}\n{published}" if output else published
    assert output is not None
    opened = open_student(checkpoint, model_config, student)
    encoder = opened.encoder
    if to == "student":
        if output.resolve() == Path(opened.source).resolve():
            raise UserError(f"--output is {output}, which is the student that was fine-tuned; choose another folder")
        save(encoder, output, student_files(opened))
        return f"{output}: upstream.checkpoint.load opens it; {parameter_count(encoder):,} parameters"
    if encoder.config.whisper:
        raise UserError(f"{checkpoint} is a Whisper encoder, which is opened as a teacher and not exported to {to}")
    recognizer = opened.recognizer
    if to == "transformers":
        own_code = needs_own_code(encoder)
        difference = to_transformers(encoder, output, transformers_card(opened, own_code), recognizer)
        opener, compared = ("AutoModelForCTC", "logit") if recognizer else ("AutoModel", "hidden state")
        call = f"{opener}.from_pretrained" + (" with trust_remote_code=True" if own_code else "")
        return f"{output}: {call} opens it; largest difference of any {compared} {difference:.1e}"
    graph = onnx.graph_of(encoder, states or ("logits" if recognizer else "all"), weights, recognizer)
    return f"{output}: {_written(graph, to, output, quantize, calibrate, longest, streaming)}"


def _written(
    graph: onnx.StatesGraph,
    to: str,
    output: Path,
    quantize: str | None,
    calibrate: str | None,
    longest: float | None,
    streaming: bool,
) -> str:
    """Write a graph; returns a description of its inputs, outputs and deviation from the student."""
    if streaming:
        difference = to_streaming_onnx(graph, output)
        return f"upstream.onnx_stream.OnnxStream runs it; {difference:.1e} at most from PyTorch on whole wavs"
    if calibrate:
        return statically_quantized(graph, output, calibration_audio(calibrate, graph.encoder.config))
    if to == "executorch":
        return str(executorch.to_executorch(graph, output, longest or executorch.SECONDS))
    if quantize:
        return onnx.quantized(graph, output)
    difference = (onnx.to_program if to == "torch-export" else onnx.to_onnx)(graph, output)
    inputs_and_outputs = f"waveforms and lengths in, {graph.output_name} and frame_lengths out"
    return f"{inputs_and_outputs}; {difference:.1e} at most from PyTorch"
