"""What can be benchmarked: checkpoints, ONNX files, `transformers` models, and published shapes without weights."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distiller.common.provenance import parameter_count
from distiller.students.config import NarrowConfig
from distiller.teachers.teacher import load_teacher
from upstream.config import BASE_CONV_LAYERS, EncoderConfig
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError, one_of, require
from upstream.formats import huggingface_writing
from upstream.onnx_encoder import metadata, session
from upstream.onnx_stream import OnnxStream
from upstream.streaming import Stream

TRANSFORMERS = "transformers:"  # prefix of a folder or hub name: run it with the classes of `transformers`
LIVE = "live:"  # prefix of a student with student.attention=chunked, or its ONNX file: stream the audio
RANDOM = "random:"  # prefix of the name of a shape: random weights, so nothing is downloaded
WEIGHTS = (".safetensors", ".bin", ".onnx", ".ckpt", ".pth", ".pt", ".pt2")

HUBERT_BASE = EncoderConfig(
    embed_dim=768, num_heads=12, head_dim=64, attention_heads=(tuple(range(12)),) * 12, ffn_dims=(3072,) * 12
)
STARHUBERT = NarrowConfig(dropout=0.0, feature_dropout=0.0)
SHAPES = {
    "hubert-base": HUBERT_BASE,
    "starhubert": STARHUBERT.shape(HUBERT_BASE),
    "starhubert-thin": replace(STARHUBERT, front_end="thin").shape(HUBERT_BASE),
    "starhubert-logmel": replace(STARHUBERT, front_end="logmel").shape(HUBERT_BASE),
    "starhubert-chunked": replace(STARHUBERT, attention="chunked").shape(HUBERT_BASE),
    "starhubert-logmel-chunked": replace(STARHUBERT, front_end="logmel", attention="chunked").shape(HUBERT_BASE),
    # about DPHuBERT's parameters and multiply-accumulates, spread evenly: 23.5 M and a third of the teacher's
    "skill": replace(
        HUBERT_BASE,
        attention_heads=((0, 4, 8),) * 12,
        ffn_dims=(488,) * 12,
        conv_layers=tuple((384, kernel, stride) for _, kernel, stride in BASE_CONV_LAYERS),
        unpruned_channels=(512,) * 7,
        feature_scale=True,
    ),
}

Run = Callable[[Tensor, Tensor], Any]  # (waveforms, lengths)


class Opened(NamedTuple):
    """An encoder ready to run, and what is known about it."""

    run: Run
    kind: str  # "ours", "onnx", "live" or "transformers"
    config: EncoderConfig | None
    parameters: int | None
    path: Path  # of its weights; may not exist


def open_target(target: str, device: str, threads: int) -> Opened:
    """
    Raises:
        UserError: the target cannot be opened, or is an ONNX file for a GPU.
    """
    if target.startswith(TRANSFORMERS):
        return _open_transformers(target.removeprefix(TRANSFORMERS), device)
    if target.startswith(LIVE):
        return _open_live(target.removeprefix(LIVE), device, threads)
    if target.endswith(".onnx"):
        return _open_onnx(Path(target), device, threads)
    encoder = open_encoder(target).to(device)
    return Opened(encoder, "ours", encoder.config, parameter_count(encoder), Path(target))


def open_encoder(target: str) -> SpeechEncoder:
    """A checkpoint, the bundled teacher, or `random:SHAPE`, in eval mode.

    Raises:
        UserError: it cannot be opened.
    """
    if not target.startswith(RANDOM):
        return load_teacher(target)
    name = target.removeprefix(RANDOM)
    require(name in SHAPES, "the shape after random:", name, one_of(name, list(SHAPES)))
    torch.manual_seed(0)
    return SpeechEncoder(SHAPES[name]).eval()


def _open_transformers(name: str, device: str) -> Opened:
    from transformers import AutoModel, HubertConfig, HubertModel

    from distiller.exporters.transformers import has_only_our_code

    encoder = open_encoder(name)  # for the cost, and for a one-line error if it cannot be opened
    if encoder.config.whisper:
        raise UserError(
            f"{TRANSFORMERS}{name} is a Whisper model, which does not accept waveforms; give {name} to measure ours"
        )
    if name.startswith(RANDOM):  # the same weights, as far as the class supports the shape
        values, _, state = huggingface_writing.write(encoder)
        model = HubertModel(HubertConfig.from_dict(values))
        model.load_state_dict(state, strict=False)
    else:
        try:
            model = AutoModel.from_pretrained(name, trust_remote_code=has_only_our_code(Path(name)))
        except ValueError:  # it would have to run code from the folder
            raise UserError(f"{name}: its Python files differ from those of our export, so they are not run") from None
    model.to(torch.device(device)).eval()  # type: ignore[arg-type]  # a decorator hides the signature

    def run(waveforms: Tensor, lengths: Tensor) -> Any:
        return model(waveforms, output_hidden_states=True)

    return Opened(run, "transformers", encoder.config, parameter_count(model), Path(name))


def _open_live(target: str, device: str, threads: int) -> Opened:
    """A streaming encoder, run chunk by chunk; the wavs of a batch have the same length."""
    if target.endswith(".onnx"):
        parameters, config = int(metadata(Path(target))["parameters"]), OnnxStream(Path(target)).config
        make = cache(lambda batch: OnnxStream(Path(target), batch, threads))
    else:
        encoder = open_encoder(target).to(device)
        parameters, config, make = parameter_count(encoder), encoder.config, partial(Stream, encoder)
        make(1)  # raises unless it can stream
    size = config.chunk_frames * config.samples_per_frame

    def run(waveforms: Tensor, lengths: Tensor) -> Any:
        stream = make(len(waveforms))
        if isinstance(stream, OnnxStream):
            stream.restart()
        return [*(stream(piece) for piece in waveforms.split(size, dim=1)), stream.flush()]

    return Opened(run, "live", config, parameters, Path(target))


def _open_onnx(path: Path, device: str, threads: int) -> Opened:
    if device != "cpu":
        raise UserError(f"{path}: ONNX files are measured on the CPU, not on {device}")
    known = metadata(path)
    config = EncoderConfig.from_dict(json.loads(known["encoder"]), str(path)) if "encoder" in known else None
    parameters = int(known["parameters"]) if "parameters" in known else None
    return Opened(session(path, threads), "onnx", config, parameters, path)


def weights_mb(path: Path) -> float | None:
    """Size of the weights on disk in MB (10^6 bytes); None for a hub name."""
    files = [path] if path.is_file() else [file for file in path.glob("*") if file.suffix in WEIGHTS]
    return sum(file.stat().st_size for file in files) / 1e6 if files else None
