"""A student with a log-mel front end: every exported file computes the spectrum itself."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from distiller import export
from distiller.students.config import MEL_BINS, with_front_end
from tests.distiller.graphs.conftest import SHAPE
from upstream.checkpoint import load, save
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder
from upstream.onnx_encoder import OnnxEncoder

LENGTHS = (16_123, 9_000, 400)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student, and speech/ to calibrate on."""
    root = tmp_path_factory.mktemp("mel")
    torch.manual_seed(2)
    shape = EncoderConfig(**{**SHAPE, "feature_scale": False})
    save(SpeechEncoder(with_front_end(shape, "logmel")).eval(), root / "student")
    (root / "speech").mkdir()
    random = np.random.default_rng(0)
    for index in range(4):
        soundfile.write(root / "speech" / f"{index}.wav", 0.1 * random.standard_normal(12_000), 16_000)
    return root


@pytest.mark.parametrize(
    ("options", "allowed"),
    [((), 1e-4), (("--quantize", "int8"), 0.1), (("--quantize", "static-int8", "--calibrate", "speech"), 0.1)],
    ids=["32 bits", "int8", "static-int8"],
)
def test_an_onnx_file_hears_waveforms(folder: Path, monkeypatch, options: tuple[str, ...], allowed: float) -> None:
    monkeypatch.chdir(folder)
    path = f"{len(options)}.onnx"
    assert export.main(["student", "--to", "onnx", "--output", path, *options]) == 0
    encoder, file = load("student"), OnnxEncoder(Path(path))
    assert encoder.config.mel_bins == file.config.mel_bins == MEL_BINS
    generator = torch.Generator().manual_seed(1)
    waveforms = 0.1 * torch.randn(len(LENGTHS), max(LENGTHS), generator=generator)
    with torch.no_grad():
        ours, theirs = encoder(waveforms, torch.tensor(LENGTHS)), file(waveforms, torch.tensor(LENGTHS))
    assert ours.frame_lengths.tolist() == theirs.frame_lengths.tolist()
    mask = ours.frame_mask()
    for expected, found in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        difference = (found[mask] - expected[mask]).square().mean().sqrt() / expected[mask].square().mean().sqrt()
        assert float(difference) < allowed


def test_a_program_hears_waveforms(folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    assert export.main(["student", "--to", "torch-export", "--output", "student.pt2"]) == 0
    program, encoder = torch.export.load("student.pt2").module(), load("student")
    waveforms = 0.1 * torch.randn(2, 12_345, generator=torch.Generator().manual_seed(1))
    states, counts = program(waveforms, torch.tensor([12_345, 8_000]))
    with torch.no_grad():
        output = encoder(waveforms, torch.tensor([12_345, 8_000]))
    mask = output.frame_mask()
    assert counts.tolist() == output.frame_lengths.tolist()
    torch.testing.assert_close(states[-1][mask], output.hidden_states[-1][mask], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "front_end", "norm"),
    [
        ("hubert", "conv", "group"),
        ("wavlm", "logmel", "group"),
        ("wavlm", "conv", "layer"),
        ("hubert", "logmel", "layer"),
    ],
)
def test_a_student_of_chunks_has_the_same_states_in_a_file(
    tmp_path: Path, family: str, front_end: str, norm: str
) -> None:
    torch.manual_seed(2)
    shape = EncoderConfig(**{**SHAPE, "feature_scale": False, "family": family, "normalize_waveform": False})
    chunked = replace(with_front_end(shape, front_end), conv_norm=norm, chunk_frames=5, left_frames=12)
    encoder = SpeechEncoder(chunked).eval()
    save(encoder, tmp_path / "student")
    path = tmp_path / "student.onnx"
    assert export.main([str(tmp_path / "student"), "--to", "onnx", "--output", str(path)]) == 0
    waveforms = 0.1 * torch.randn(2, 31_234, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([31_234, 20_000])
    with torch.no_grad():
        ours, theirs = encoder(waveforms, lengths), OnnxEncoder(path)(waveforms, lengths)
    mask = ours.frame_mask()
    torch.testing.assert_close(theirs.hidden_states[-1][mask], ours.hidden_states[-1][mask], atol=1e-4, rtol=1e-4)
