"""A small WavLM with pruned parts, and its ONNX file."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from distiller import export
from upstream.checkpoint import save
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder

SHAPE = {
    "family": "wavlm",
    "embed_dim": 24,
    "num_heads": 2,
    "head_dim": 12,
    "attention_heads": ((1,), None),
    "ffn_dims": (7, 0),
    "conv_layers": ((8, 10, 5), *((8, 3, 2),) * 4, (8, 2, 2), (24, 2, 2)),
    "feature_scale": True,
    "normalize_waveform": True,
    "positional_kernel": 8,
    "positional_groups": 4,
    "relative_buckets": 32,
    "relative_max_distance": 80,
}


@pytest.fixture(scope="session")
def student() -> SpeechEncoder:
    torch.manual_seed(2)
    encoder = SpeechEncoder(EncoderConfig(**SHAPE)).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


@pytest.fixture(scope="session")
def onnx_file(student, tmp_path_factory) -> Path:
    """All hidden states of `student`."""
    folder = tmp_path_factory.mktemp("onnx")
    save(student, folder / "student")
    argv = [str(folder / "student"), "--to", "onnx", "--output", str(folder / "student.onnx")]
    assert export.main(argv) == 0
    return folder / "student.onnx"


@pytest.fixture(scope="session")
def static_file(student, tmp_path_factory) -> Path:
    """The same in 8 bits, with scales measured on the noises in speech/ beside it."""
    folder = tmp_path_factory.mktemp("static")
    save(student, folder / "student")
    (folder / "speech").mkdir()
    random = np.random.default_rng(0)
    for index in range(8):
        swell = np.abs(np.sin(np.linspace(0.1, 9.0, 12_000)))
        soundfile.write(folder / "speech" / f"{index}.wav", 0.1 * swell * random.standard_normal(12_000), 16_000)
    path = folder / "static.onnx"
    argv = [str(folder / "student"), "--to", "onnx", "--output", str(path), "--quantize", "static-int8"]
    assert export.main([*argv, "--calibrate", str(folder / "speech")]) == 0
    return path
