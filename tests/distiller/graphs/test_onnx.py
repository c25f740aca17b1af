"""ONNX files, 8-bit ones and torch.export programs against the student they were made of."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from distiller import export
from distiller.graphs import onnx as export_onnx
from tests.distiller.graphs.conftest import SHAPE
from upstream.checkpoint import save
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError
from upstream.onnx_encoder import metadata, session

pytest.importorskip("onnxscript", reason="the dependency group 'export' is not installed")
pytest.importorskip("onnxruntime", reason="the dependency group 'export' is not installed")


def padded_batch(samples: int, shorter: int) -> tuple[torch.Tensor, torch.Tensor]:
    waveforms = 0.1 * torch.randn(2, samples, generator=torch.Generator().manual_seed(samples))
    waveforms[1, shorter:] = 7.0  # whatever stands in the padding
    return waveforms, torch.tensor([samples, shorter])


@pytest.mark.parametrize(("samples", "shorter"), [(16000, 9000), (8011, 400), (400, 400), (719, 719), (4321, 4320)])
def test_any_batch_and_length_equals_pytorch(samples, shorter, student, onnx_file) -> None:
    waveforms, lengths = padded_batch(samples, shorter)
    states, frame_lengths = session(onnx_file)(waveforms, lengths)
    with torch.no_grad():
        expected = student(waveforms, lengths)
    assert torch.equal(frame_lengths, expected.frame_lengths)
    assert states.shape == (3, 2, expected.projected.shape[1], 24)
    assert bool(states.isfinite().all())
    for layer, reference in enumerate(expected.hidden_states):
        for row, frames in enumerate(frame_lengths.tolist()):
            assert (states[layer, row, :frames] - reference[row, :frames]).abs().max() < 1e-4


def test_it_runs_with_onnxruntime_and_numpy_alone(student, onnx_file, tmp_path) -> None:
    program = (
        "import sys; sys.modules['torch'] = None; import numpy, onnxruntime;"
        "run = onnxruntime.InferenceSession(sys.argv[1]).run;"
        "wav = numpy.load(sys.argv[2]);"
        "states, frames = run(None, {'waveforms': wav, 'lengths': numpy.array([wav.shape[1]])});"
        "numpy.save(sys.argv[3], states)"
    )
    waveforms = 0.1 * torch.randn(1, 5000, generator=torch.Generator().manual_seed(4))
    np.save(tmp_path / "wav.npy", waveforms.numpy())
    arguments = [str(onnx_file), str(tmp_path / "wav.npy"), str(tmp_path / "out.npy")]
    subprocess.run([sys.executable, "-c", program, *arguments], cwd=tmp_path, env=dict(os.environ), check=True)
    with torch.no_grad():
        expected = torch.stack(student(waveforms).hidden_states).numpy()
    assert np.abs(np.load(tmp_path / "out.npy") - expected).max() < 1e-4


def test_the_file_is_one_and_says_what_it_holds(student, onnx_file) -> None:
    assert sorted(path.name for path in onnx_file.parent.iterdir()) == ["student", "student.onnx"]
    facts = metadata(onnx_file)
    assert EncoderConfig.from_dict(json.loads(facts["encoder"])) == student.config
    assert int(facts["parameters"]) == sum(parameter.numel() for parameter in student.parameters())


@pytest.mark.slow
def test_one_state_instead_of_all(student, tmp_path, capsys) -> None:
    save(student, tmp_path / "student")
    waveforms, lengths = padded_batch(8000, 5000)
    with torch.no_grad():
        output = student(waveforms, lengths)
    weighted = 0.5 * output.hidden_states[0] + 0.25 * output.hidden_states[2]
    for states, options, expected in (
        ("last", [], output.last_hidden_state),
        ("weighted", ["--weights", "0.5,0,0.25"], weighted),
        ("weighted", [], torch.stack(output.hidden_states).mean(dim=0)),
    ):
        path = tmp_path / f"{states}{len(options)}.onnx"
        argv = [str(tmp_path / "student"), "--to", "onnx", "--output", str(path), "--states", states, *options]
        assert export.main(argv) == 0
        assert ("weighted_states" if states == "weighted" else "last_hidden_state") in capsys.readouterr().out
        found, frame_lengths = session(path)(waveforms, lengths)
        for row, frames in enumerate(frame_lengths.tolist()):
            assert (found[row, :frames] - expected[row, :frames]).abs().max() < 1e-4


@pytest.mark.slow
def test_eight_bits_are_smaller_and_their_deviation_is_said(tmp_path, capsys) -> None:
    torch.manual_seed(0)
    wide = {**SHAPE, "embed_dim": 192, "head_dim": 96, "attention_heads": ((0, 1),) * 2, "ffn_dims": (512, 512)}
    encoder = SpeechEncoder(EncoderConfig(**wide)).eval()
    save(encoder, tmp_path / "student")
    for name, options in (("whole", []), ("int8", ["--quantize", "int8"])):
        argv = [str(tmp_path / "student"), "--to", "onnx", "--output", str(tmp_path / f"{name}.onnx"), *options]
        assert export.main(argv) == 0
    said = capsys.readouterr().out
    assert "relative error 0.0" in said
    assert "times faster" in said
    sizes = [(tmp_path / f"{name}.onnx").stat().st_size for name in ("whole", "int8")]
    assert sizes[1] < 0.5 * sizes[0]
    graph = export_onnx.graph_of(encoder, "all", None)
    deviation = export_onnx.compare(graph, session(tmp_path / "int8.onnx"))
    assert 1e-4 < deviation.relative < 0.1
    assert deviation.cosine > 0.99
    assert metadata(tmp_path / "int8.onnx")["parameters"]


@pytest.mark.slow
def test_a_torch_export_program_computes_the_same(student, tmp_path, capsys) -> None:
    save(student, tmp_path / "student")
    argv = [str(tmp_path / "student"), "--to", "torch-export", "--output", str(tmp_path / "student.pt2")]
    assert export.main(argv) == 0
    module = torch.export.load(tmp_path / "student.pt2").module()
    waveforms, lengths = padded_batch(8000, 5000)
    with torch.no_grad():
        expected = student(waveforms, lengths).hidden_states[-1]
        states, _ = module(waveforms, lengths)
    assert (states[-1, 0] - expected[0]).abs().max() < 1e-4


def test_a_graph_that_deviates_is_not_kept(student, tmp_path, monkeypatch) -> None:
    graph = export_onnx.graph_of(student, "all", None)
    exact = export_onnx.compare(graph, graph)
    assert exact.largest < 1e-5
    assert exact.cosine > 0.99999

    def off(waveforms: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            states, frame_lengths = graph(waveforms, lengths)
        return states + 1e-3, frame_lengths

    assert export_onnx.compare(graph, off).largest == pytest.approx(1e-3, rel=0.1)


class Program:
    """Stands for what torch.onnx.export returns."""

    model = SimpleNamespace(metadata_props={}, graph=SimpleNamespace(all_nodes=list))

    def save(self, path: Path, external_data: bool) -> None:
        path.write_bytes(b"a graph")


@pytest.mark.parametrize(
    ("value", "difference"), [(float("nan"), "inf"), (float("inf"), "inf"), (0.5, "0.5"), (0.0, None)]
)
def test_a_file_that_deviates_is_not_kept(value, difference, student, tmp_path, monkeypatch) -> None:
    """onnxruntime's states as they would be if the file computed something else."""
    graph = export_onnx.graph_of(student, "last", None)

    def run(waveforms: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states, frame_lengths = graph(waveforms, lengths)
        states[..., 0] += value
        return states, frame_lengths

    monkeypatch.setattr(export_onnx, "export_program", lambda graph: None)
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: Program())
    monkeypatch.setattr(export_onnx, "session", lambda path: run)
    if difference is None:
        assert export_onnx.to_onnx(graph, tmp_path / "x.onnx") < 1e-5
        assert (tmp_path / "x.onnx").read_bytes() == b"a graph"
        return
    with pytest.raises(UserError, match=f"is not written: its states differ from PyTorch's by {difference}"):
        export_onnx.to_onnx(graph, tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_student_that_is_not_finite_deviates_from_itself(value, student) -> None:
    broken = copy.deepcopy(student)
    with torch.no_grad():
        broken.layer_norm.bias[0] = value
    graph = export_onnx.graph_of(broken, "last", None)
    assert export_onnx.compare(graph, graph).largest == float("inf")


@pytest.mark.parametrize("weights", ["nan,1,1", "1,inf,1"])
def test_weights_must_be_finite(weights, student, tmp_path, capsys) -> None:
    save(student, tmp_path / "student")
    argv = [str(tmp_path / "student"), "--to", "onnx", "--output", str(tmp_path / "x.onnx")]
    assert export.main([*argv, "--states", "weighted", "--weights", weights]) == 2
    assert "but it must be 3 finite numbers" in capsys.readouterr().err
    assert not (tmp_path / "x.onnx").exists()


def test_weights_must_fit_the_layers(student) -> None:
    with pytest.raises(
        UserError, match=r"--weights is \[1.0, 2.0\], but it must be 3 finite numbers, one for each of F\^0\.\.F\^2"
    ):
        export_onnx.graph_of(student, "weighted", [1.0, 2.0])


def test_what_is_no_onnx_file_is_one_sentence(tmp_path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"not a graph")
    for path in (tmp_path / "a.onnx", tmp_path / "absent.onnx"):
        with pytest.raises(UserError, match="cannot be opened by onnxruntime"):
            session(path)


def test_without_the_packages_the_command_that_installs_them_is_said(student, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(export_onnx.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match="onnx and onnxscript and onnxruntime are not installed; run uv sync --group export"
    ):
        export_onnx.to_onnx(export_onnx.graph_of(student, "all", None), tmp_path / "x.onnx")


LONG = """
import resource, sys
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
wav = 0.1 * numpy.random.default_rng(0).standard_normal((1, 2 * 60 * 16000)).astype(numpy.float32)
session = onnxruntime.InferenceSession(sys.argv[1], options)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
session.run(None, {"waveforms": wav, "lengths": numpy.array([wav.shape[1]])})
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3)
"""


@pytest.mark.slow
def test_two_minutes_take_memory_that_grows_with_the_wav(onnx_file) -> None:
    """With WavLM's biases. A map of every pair would be 144 MB for each head, of which a softmax holds several."""
    command = [sys.executable, "-c", LONG, str(onnx_file)]
    taken = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)  # in MB
    assert taken < 140


def test_the_helper_takes_the_audio_people_have(student, onnx_file) -> None:
    run = session(onnx_file)
    wav = np.random.default_rng(0).integers(-3000, 3000, 5000).astype(np.int16)
    with torch.no_grad():
        expected = student(wav).hidden_states[-1]
    for audio in (wav, wav / 2**15, torch.from_numpy(wav)[None], [wav]):  # int16, and float64 as soundfile gives it
        states, _ = run(audio, None)
        assert (states[-1] - expected).abs().max() < 1e-4
    with pytest.raises(UserError, match="must be mono"):
        run(np.zeros((5000, 2, 2)), None)


def test_files_name_no_folders_of_this_machine(onnx_file) -> None:
    content = onnx_file.read_bytes()
    for folder in (Path(__file__).resolve().parents[3], onnx_file.parent, Path(torch.__file__).parent.parent):
        assert str(folder).encode() not in content
