"""ExecuTorch programs, and the graph without masks that they are made of, against the student."""

from pathlib import Path

import pytest
import torch

from distiller import export
from distiller.graphs import executorch as export_executorch
from distiller.graphs.onnx import graph_of
from distiller.graphs.unpadded import UnpaddedGraph
from tests.distiller.graphs.conftest import SHAPE
from upstream.checkpoint import save
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError

HUBERT = {**SHAPE, "family": "hubert", "normalize_waveform": False, "positional_kernel": 7}
HUBERT.pop("relative_buckets")
HUBERT.pop("relative_max_distance")
PRE_NORM = {"layer_norm_first": True, "conv_norm": "layer", "conv_bias": True, "normalize_waveform": True}
DATA2VEC = {"family": "data2vec-audio", "positional_layers": 3, "conv_norm": "layer", "feature_scale": False}
SHAPES = {
    "wavlm": {**SHAPE, "relative_max_distance": 12},  # which frames of the longest wav exceed
    "hubert": HUBERT,
    "pre-norm": {**HUBERT, **PRE_NORM},
    "data2vec": {**HUBERT, **DATA2VEC},
}


def wav(samples: int) -> torch.Tensor:
    return 0.1 * torch.randn(1, samples, generator=torch.Generator().manual_seed(samples)) + 0.3


@pytest.mark.parametrize("shape", SHAPES)
def test_the_graph_without_masks_equals_the_encoder(shape: str) -> None:
    torch.manual_seed(3)
    encoder = SpeechEncoder(EncoderConfig(**SHAPES[shape])).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for samples in (400, 719, 8011):
            states, frame_lengths = UnpaddedGraph(graph_of(encoder, "all", None))(wav(samples))
            expected = encoder(wav(samples))
            assert torch.equal(frame_lengths, expected.frame_lengths)
            torch.testing.assert_close(states, torch.stack(expected.hidden_states), rtol=0, atol=1e-5)


def test_without_the_package_the_command_that_installs_it_is_said(student, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(export_executorch.importlib.util, "find_spec", lambda name: None)
    said = "executorch is not installed; run uv sync --group executorch"
    with pytest.raises(UserError, match=said):
        export_executorch.to_executorch(graph_of(student, "all", None), tmp_path / "x.pte", 30)
    with pytest.raises(UserError, match=said):
        export_executorch.program(tmp_path / "x.pte")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def file(student: SpeechEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("executorch.runtime", reason="the dependency group 'executorch' is not installed")
    folder = tmp_path_factory.mktemp("executorch")
    save(student, folder / "student")
    argv = [str(folder / "student"), "--to", "executorch", "--output", str(folder / "student.pte"), "--longest", "2"]
    assert export.main(argv) == 0
    return folder / "student.pte"


@pytest.mark.slow
def test_the_file_takes_any_length_up_to_its_longest(student: SpeechEncoder, file: Path) -> None:
    run = export_executorch.program(file)
    for samples in (400, 719, 16_000, 31_999, 32_000):
        with torch.no_grad():
            states, frame_lengths = run(wav(samples), None)
            expected = student(wav(samples))
        assert torch.equal(frame_lengths, expected.frame_lengths)
        torch.testing.assert_close(states, torch.stack(expected.hidden_states), rtol=0, atol=1e-4)
    with pytest.raises(UserError, match=f"a wav has 32001 samples, but {file} takes at most 32000"):
        run(wav(32_001), None)


@pytest.mark.slow
def test_the_file_names_no_folders_of_this_machine(file: Path) -> None:
    content = file.read_bytes()
    for folder in (Path(__file__).resolve().parents[3], file.parent, Path(torch.__file__).parent.parent):
        assert str(folder).encode() not in content


@pytest.mark.slow
def test_what_is_no_program_is_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("executorch.runtime", reason="the dependency group 'executorch' is not installed")
    (tmp_path / "a.pte").write_bytes(b"not a program")
    with pytest.raises(UserError, match=r"a\.pte cannot be run by this executorch and torch"):
        export_executorch.program(tmp_path / "a.pte")
