"""A streaming ONNX file gives the states of whole wavs, however they are cut into pieces."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from distiller import export
from distiller.students.config import with_front_end
from tests.distiller.graphs.conftest import SHAPE
from upstream.checkpoint import save
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError
from upstream.onnx_stream import OnnxStream

CHUNKS: dict[str, Any] = {"chunk_frames": 4, "left_frames": 9}


def student(family: str, front_end: str, **changes: Any) -> SpeechEncoder:
    torch.manual_seed(2)
    shape = EncoderConfig(**{**SHAPE, "feature_scale": False, "family": family, "normalize_waveform": False})
    encoder = SpeechEncoder(replace(with_front_end(shape, front_end), **CHUNKS, **changes)).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


@pytest.mark.parametrize(
    ("family", "front_end", "norm"),
    [
        ("hubert", "conv", "group"),
        ("wavlm", "conv", "layer"),
        ("hubert", "logmel", "group"),
        ("wavlm", "logmel", "layer"),
    ],
)
def test_pieces_of_any_size_give_the_states_of_the_whole_wav(
    tmp_path: Path, family: str, front_end: str, norm: str, capsys
) -> None:
    encoder, path = student(family, front_end, conv_norm=norm), tmp_path / "live.onnx"
    save(encoder, tmp_path / "student")
    assert export.main([str(tmp_path / "student"), "--to", "onnx", "--streaming", "--output", str(path)]) == 0
    assert "OnnxStream runs it" in capsys.readouterr().out
    waveforms = 0.1 * torch.randn(3, 20_321, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = torch.stack(encoder(waveforms).hidden_states)
    stream = OnnxStream(path, batch=3)
    for size in (333, 4_000, 30_000):
        stream.restart()
        parts = [*(stream(piece) for piece in waveforms.split(size, dim=1)), stream.flush()]
        torch.testing.assert_close(torch.cat(parts, dim=2), whole, atol=1e-4, rtol=1e-3)
    with pytest.raises(UserError, match="the stream has ended"):
        stream(waveforms)
    stream.restart()
    with pytest.raises(UserError, match="the audio must be 3 wavs of equal length"):
        stream(waveforms[:1])
    short = OnnxStream(path)
    assert torch.cat([short(torch.zeros(1, 399)), short.flush()], dim=2).shape == (len(whole), 1, 0, whole.shape[-1])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--to", "onnx", "--streaming"], "error: --streaming needs a streaming student (student.attention=chunked)"),
        (["--to", "torch-export", "--streaming"], "error: --streaming needs --to onnx and cannot be combined with"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, arguments: list[str], line: str, capsys) -> None:
    save(SpeechEncoder(EncoderConfig(**SHAPE)), tmp_path / "student")
    output = tmp_path / "file"
    assert export.main([str(tmp_path / "student"), *arguments, "--output", str(output)]) == 2
    assert capsys.readouterr().err.startswith(line)
    assert not output.exists()


def test_a_file_of_whole_wavs_is_not_streamed(onnx_file: Path) -> None:
    with pytest.raises(UserError, match="is not a streaming model; export one with --to onnx --streaming"):
        OnnxStream(onnx_file)
