"""An ONNX file as an upstream: the features of its student, and what it cannot do."""

from pathlib import Path

import pytest
import torch

from distiller.common.provenance import parameter_count
from distiller.exporters.export import export
from downstream_recipes.suite.features import _identity
from upstream import hubconf
from upstream.checkpoint import save
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError
from upstream.expert import UpstreamExpert

pytest.importorskip("onnxscript", reason="the dependency group 'export' is not installed")
pytest.importorskip("onnxruntime", reason="the dependency group 'export' is not installed")
WAVS = [0.1 * torch.randn(length, generator=torch.Generator().manual_seed(length)) for length in (9000, 7040, 150)]


def test_it_has_the_features_of_its_student(student: SpeechEncoder, onnx_file: Path, tmp_path: Path) -> None:
    save(student, tmp_path / "student")
    ours = hubconf.starhubert(ckpt=str(tmp_path / "student"))
    file = hubconf.starhubert(ckpt=str(onnx_file))
    with torch.no_grad():
        expected, found = ours(WAVS), file(WAVS)
    assert len(found["hidden_states"]) == len(expected["hidden_states"]) == student.config.num_layers
    for name in ("hidden_states", "last_hidden_state"):
        for one, other in zip(found[name], expected[name], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    assert file.get_downsample_rates("hidden_states") == 320
    assert parameter_count(file) == parameter_count(ours)
    assert _identity(file) != _identity(ours)
    assert _identity(file) == _identity(hubconf.starhubert(ckpt=str(onnx_file)))


def test_a_static_8_bit_file_gives_features_that_do_not_depend_on_the_batch(static_file: Path) -> None:
    file = hubconf.starhubert(ckpt=str(static_file))
    with torch.no_grad():
        together = file(WAVS)["hidden_states"]
        alone = [file([wav])["hidden_states"] for wav in WAVS]
    for layer, states in enumerate(together):
        for row, one in enumerate(alone):
            expected = one[layer][0]
            assert (states[row, : len(expected)] - expected).norm() < 0.01 * expected.norm()


def test_two_files_of_one_shape_are_told_apart(onnx_file: Path, tmp_path: Path) -> None:
    """Else a cache of features would take one's for the other's."""
    import onnx

    model = onnx.load(onnx_file)
    model.doc_string = "another file"
    onnx.save(model, tmp_path / "other.onnx")
    ours, others = (UpstreamExpert(path, states="layers") for path in (onnx_file, tmp_path / "other.onnx"))
    assert _identity(ours) != _identity(others)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            {"states": "projected"},
            "upstream option states is 'projected', but it must be layers for student.onnx",
        ),
        ({"padding": "reference"}, "upstream option padding is 'reference', but it must be invariant for student.onnx"),
        ({"chunk_seconds": 30}, "upstream option chunk_seconds is 30.0, but it must be left out for student.onnx"),
    ],
)
def test_what_the_file_has_not_is_refused(option: dict, message: str, onnx_file: Path) -> None:
    with pytest.raises(UserError, match=message):
        UpstreamExpert(onnx_file, **{"states": "layers", **option})


def test_a_file_of_other_states_is_refused(student: SpeechEncoder, tmp_path: Path) -> None:
    save(student, tmp_path / "student")
    export(str(tmp_path / "student"), "onnx", tmp_path / "last.onnx", states="last")
    with pytest.raises(UserError, match="does not hold all hidden states; export it with --to onnx and without"):
        UpstreamExpert(tmp_path / "last.onnx", states="layers")
    (tmp_path / "no.onnx").write_text("no graph")
    for name in ("no.onnx", "absent.onnx"):
        with pytest.raises(UserError, match="cannot be opened by onnxruntime"):
            UpstreamExpert(tmp_path / name, states="layers")
