"""What a benchmark opens: published shapes, and no foreign code."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distiller.benchmarks.encoders import SHAPES, open_target, weights_mb
from distiller.common.provenance import parameter_count
from distiller.exporters.transformers import has_only_our_code, to_transformers
from tests.distiller.conftest import TEACHER
from upstream.checkpoint import load, save
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError


@pytest.fixture
def own(tiny_teacher: Path, tmp_path: Path) -> Path:
    """An export that contains our modelling code."""
    encoder = SpeechEncoder(replace(load(tiny_teacher).config, ffn_dims=(32, 16)))
    to_transformers(encoder, tmp_path / "own", "card")
    return tmp_path / "own"


def test_code_that_is_not_ours_is_not_run(own: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    to_transformers(load(tiny_teacher), plain, "card")
    assert open_target(f"transformers:{own}", "cpu", 1).kind == "transformers"
    evil = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
    (plain / "evil.py").write_text(evil)
    config = json.loads((plain / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "evil.Model"}
    (plain / "config.json").write_text(json.dumps(config))
    assert open_target(f"transformers:{plain}", "cpu", 1).kind == "transformers"  # by the class of transformers
    with (own / "attention.py").open("a") as file:
        file.write(evil)
    with pytest.raises(UserError, match="its Python files differ from those of our export"):
        open_target(f"transformers:{own}", "cpu", 1)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("changed", ["nothing", "a file", "another file", "a file below", "another repository"])
def test_our_code_is_that_of_an_export_and_nothing_else(changed: str, own: Path) -> None:
    config = json.loads((own / "config.json").read_text())
    if changed == "another repository":
        config["auto_map"]["AutoModel"] = "someone/else--" + config["auto_map"]["AutoModel"]
    (own / "config.json").write_text(json.dumps(config))
    path = {"a file": "config.py", "another file": "more.py", "a file below": "below/config.py"}.get(changed)
    if path is not None:
        (own / path).parent.mkdir(exist_ok=True)
        (own / path).write_text("")
    assert has_only_our_code(own) == (changed == "nothing")


def test_random_shapes_are_the_published_ones() -> None:
    with torch.device("meta"):
        counts = {name: parameter_count(SpeechEncoder(config)) for name, config in SHAPES.items()}
    assert (counts["hubert-base"], counts["starhubert"]) == (94_370_944, 22_308_592)
    assert counts["skill"] / 94_697_600 == pytest.approx(0.25, abs=0.005)


def test_the_size_of_weights_is_that_of_their_files(tiny_teacher: Path, tmp_path: Path) -> None:
    size = (tiny_teacher / "model.safetensors").stat().st_size / 1e6
    assert weights_mb(tiny_teacher) == weights_mb(tiny_teacher / "model.safetensors") == size
    assert weights_mb(tmp_path / "a" / "hub-name") is None


def test_a_live_student_hears_the_whole_wav(tmp_path) -> None:
    torch.manual_seed(0)
    chunked = replace(TEACHER, conv_norm="layer", chunk_frames=4, left_frames=8)
    encoder, waveforms = SpeechEncoder(chunked).eval(), 0.1 * torch.randn(2, 9_000)
    save(encoder, tmp_path / "student")
    live = open_target(f"live:{tmp_path / 'student'}", "cpu", 1)
    with torch.no_grad():
        parts = live.run(waveforms, torch.full((2,), 9_000))
        streamed = torch.cat([part.last_hidden_state for part in parts], dim=1)
        torch.testing.assert_close(streamed, encoder(waveforms).last_hidden_state, atol=1e-5, rtol=1e-4)
    assert (live.kind, live.config) == ("live", chunked)
    with pytest.raises(UserError, match="this encoder needs the whole wav"):
        open_target("live:random:starhubert", "cpu", 1)
