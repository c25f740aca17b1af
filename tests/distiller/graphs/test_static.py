"""8-bit files with measured scales: what is measured, how close they are, and what is refused."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
import torch
from torch.nn import functional as F

from distiller import export
from distiller.exporters.calibration import calibration_audio
from distiller.graphs import static
from distiller.graphs.checks import wavs
from distiller.graphs.eight_bits import EightBitConvolution, EightBitLinear, in_eight_bits, linear_layers
from distiller.graphs.onnx import graph_of
from tests.distiller.graphs.conftest import SHAPE
from upstream.checkpoint import save
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError
from upstream.onnx_encoder import Run, metadata, session

pytest.importorskip("onnxscript", reason="the dependency group 'export' is not installed")
pytest.importorskip("onnxruntime", reason="the dependency group 'export' is not installed")


def test_the_file_is_close_to_its_student_on_other_audio(student: SpeechEncoder, static_file: Path) -> None:
    run = session(static_file)
    audio = [wav / 2 for wav in wavs()]
    lengths = torch.tensor([len(wav) for wav in audio])
    batch = torch.nn.utils.rnn.pad_sequence(audio, batch_first=True, padding_value=5.0)  # whatever stands there
    together, frames = run(batch, lengths)
    for row, wav in enumerate(audio):
        with torch.no_grad():
            expected = torch.stack(student(wav[None]).hidden_states)[:, 0]
        alone = run(wav[None], lengths[row, None])[0][:, 0]
        assert frames[row] == expected.shape[1]
        assert 1e-4 < (alone - expected).norm() / expected.norm() < 0.05
        # rounding in 32 bits may move a value to the next integer
        assert (together[:, row, : frames[row]] - alone).norm() / expected.norm() < 0.01
    assert int(metadata(static_file)["parameters"]) == sum(parameter.numel() for parameter in student.parameters())


def test_a_student_that_hears_in_chunks_keeps_its_running_statistics() -> None:
    torch.manual_seed(2)
    changes = {"family": "hubert", "normalize_waveform": False, "chunk_frames": 4, "left_frames": 9}
    encoder = SpeechEncoder(EncoderConfig(**SHAPE | changes)).eval()
    audio = [wav / 2 for wav in wavs()]
    eight_bit = in_eight_bits(encoder, static.input_ranges(encoder, audio))
    for wav in audio:
        with torch.no_grad():
            expected, found = (torch.stack(each(wav[None]).hidden_states) for each in (encoder, eight_bit))
        assert 1e-4 < (found - expected).norm() / expected.norm() < 0.05


def test_its_products_are_of_integers(student: SpeechEncoder, static_file: Path) -> None:
    model = onnx.load(static_file)
    integers = [value for value in model.graph.initializer if value.data_type == onnx.TensorProto.INT8]
    products = len(linear_layers(student)) + len(student.config.conv_layers) - 1
    assert sum(len(value.dims) == 2 for value in integers) == products
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("Conv") == 1  # the positional one
    assert operators.count("DequantizeLinear") == 2 * products - 2  # queries, keys and values share their input


def test_its_scales_are_those_of_the_audio(student: SpeechEncoder, static_file: Path) -> None:
    audio = calibration_audio(str(static_file.parent / "speech"), student.config)
    ranges = static.input_ranges(student, audio[static.HELD_OUT :])
    low, high = ranges["layers.0.attention.q_proj"]
    scalars = [onnx.numpy_helper.to_array(value) for value in onnx.load(static_file).graph.initializer]
    assert any(value.shape == () and np.isclose(value, (high - low) / 255, rtol=1e-4) for value in scalars)
    louder = static.input_ranges(student, [torch.randn(16_000) for _ in range(2)])
    assert all(louder[name] != ranges[name] for name in ranges)
    scales = [
        in_eight_bits(student, each).get_submodule("layers.0.attention.q_proj").scale for each in (ranges, louder)
    ]
    assert scales[0] != scales[1]


def test_ranges_are_the_extremes_of_the_inputs_and_hooks_are_gone(student: SpeechEncoder) -> None:
    audio = wavs()[1:]
    ranges = static.input_ranges(student, audio)
    with torch.no_grad():
        inputs = torch.cat([student(wav[None]).hidden_states[0].flatten() for wav in audio])
    assert ranges["layers.0.attention.q_proj"] == pytest.approx((float(inputs.min()), float(inputs.max())))
    assert not any(layer._forward_pre_hooks for layer in linear_layers(student).values())


def test_a_convolution_keeps_what_is_quiet() -> None:
    torch.manual_seed(0)
    level = torch.tensor([0.02, 30.0]).repeat_interleave(100)[:, None]
    rows = F.gelu(level * torch.randn(1, 200, 16))
    convolution = torch.nn.Conv1d(16, 8, 3, 2)
    with torch.no_grad():
        expected = convolution(rows.transpose(1, 2)).transpose(1, 2)
        found = EightBitConvolution(convolution)(rows)
        bias = convolution.bias
    for part in (slice(0, 48), slice(50, None)):
        error = (found[:, part] - expected[:, part]).norm() / (expected[:, part] - bias).norm()
        assert 1e-4 < error < 0.05


def test_a_linear_layer_clips_what_is_beyond_its_range() -> None:
    linear = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(linear.weight)
    layer = EightBitLinear(linear, (-1.0, 3.0))
    with torch.no_grad():
        found = layer(torch.tensor([[-9.0], [-0.5], [0.0], [2.0], [9.0]]))[:, 0]
    assert found.tolist() == pytest.approx([-1.0, -0.5, 0.0, 2.0, 3.0], abs=4 / 255)
    assert found[2] == 0.0


def test_states_that_are_far_off_are_not_kept(student: SpeechEncoder, tmp_path: Path, monkeypatch) -> None:
    graph = graph_of(student, "all", None)
    monkeypatch.setattr(static, "save_onnx", lambda graph, path, *_: path.touch())

    def that_gives(factor: float) -> Run:
        def run(waveforms: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            with torch.no_grad():
                states, frame_lengths = graph(waveforms, lengths)
            return states * factor, frame_lengths

        return run

    for factor, off in ((1.2, "0.2"), (float("nan"), "nan")):
        run = that_gives(factor)
        monkeypatch.setattr(static, "session", lambda path, threads, run=run: run)
        with pytest.raises(UserError, match=rf"x.onnx is not written: the relative error of its states is {off}"):
            static.statically_quantized(graph, tmp_path / "x.onnx", wavs())
        assert not list(tmp_path.iterdir())
    monkeypatch.setattr(static, "session", lambda path, threads: that_gives(1.05))
    assert "relative error 0.050" in static.statically_quantized(graph, tmp_path / "x.onnx", wavs())


@pytest.mark.parametrize(
    ("corpus", "said"),
    [
        ("absent", "absent does not exist"),
        ("empty", "empty holds no audio"),
        ("silent", "--calibrate is silent, but none of its audio can be decoded; 0.wav: all its samples are zero"),
    ],
)
def test_audio_that_cannot_be_used_is_one_sentence(
    corpus: str, said: str, student: SpeechEncoder, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    save(student, tmp_path / "student")
    Path("empty").mkdir()
    Path("silent").mkdir()
    soundfile.write("silent/0.wav", np.zeros(8000), 16_000)
    argv = ["student", "--to", "onnx", "--quantize", "static-int8", "--output", "x.onnx"]
    assert export.main([*argv, "--calibrate", corpus]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not Path("x.onnx").exists()
