"""Exports: what opens elsewhere computes what the student computes, and what does not is never kept."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from distiller import export
from distiller.exporters import transformers as export_transformers
from upstream.checkpoint import load, save
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError
from upstream.formats import dphubert, huggingface_writing

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
NARROW: dict[str, Any] = {
    "embed_dim": 24,
    "num_heads": 2,
    "head_dim": 12,
    "attention_heads": ((0, 1),) * 2,
    "ffn_dims": (32,) * 2,
    "conv_layers": ((8, 10, 5), *((8, 3, 2),) * 4, (8, 2, 2), (24, 2, 2)),
    "projection": False,
    "positional_kernel": 8,
    "positional_groups": 4,
}
WAVLM = {"family": "wavlm", "relative_buckets": 32, "relative_max_distance": 80}
PRUNED = {**WAVLM, "attention_heads": ((1,), None), "ffn_dims": (7, 0), "projection": True, "feature_scale": True}
STACK = {"family": "data2vec-audio", "conv_norm": "layer", "positional_layers": 2}
LARGE = {"conv_norm": "layer", "conv_bias": True, "layer_norm_first": True, "normalize_waveform": True}
STUDENTS = {
    "narrow": {},
    "narrow wavlm": WAVLM,
    "large": {**LARGE, "projection": True},
    "data2vec": {**STACK, "projection": True},
    "pruned": PRUNED,
    "pruned data2vec": {**PRUNED, **STACK},
    "pruned unispeech-sat": {**PRUNED, "family": "unispeech-sat"},
    "pruned large": {**PRUNED, **LARGE, "family": "hubert", "attention_heads": ((), (0,))},
    "fairseq's eps": {**LARGE, "projection": True, "normalize_eps": 1e-5},
    "pruned, fairseq's eps": {**PRUNED, "normalize_waveform": True, "normalize_eps": 1e-5},
    "exact cut": {**LARGE, "projection": True, "unpruned_channels": (8, 9, 8, 8, 8, 12, 30)},
}
OWN_CODE = [name for name in STUDENTS if name.startswith("pruned") or name in ("fairseq's eps", "exact cut")]


def student(**changes: Any) -> SpeechEncoder:
    """A random encoder whose every parameter differs from its initial value."""
    torch.manual_seed(2)
    encoder = SpeechEncoder(EncoderConfig(**{**NARROW, **changes})).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


@pytest.fixture
def waveform() -> np.ndarray:
    return (0.1 * np.random.default_rng(3).standard_normal(9000)).astype(np.float32)


def prepared(folder: Path, waveform: np.ndarray) -> Tensor:
    from transformers import AutoFeatureExtractor

    prepare = AutoFeatureExtractor.from_pretrained(folder)
    return prepare(waveform, sampling_rate=16000, return_tensors="pt").input_values


def exported(capsys, *argv: str) -> str:
    capsys.readouterr()
    assert export.main(argv) == 0
    output = capsys.readouterr()
    assert output.err == ""
    return output.out


def refused(capsys, *argv: str) -> str:
    assert export.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize("name", STUDENTS)
def test_transformers_opens_the_folder_and_computes_the_same(name, tmp_path, capsys, waveform) -> None:
    from transformers import AutoModel

    encoder = student(**STUDENTS[name])
    save(encoder, tmp_path / "student")
    folder = tmp_path / "export"
    said = exported(capsys, str(tmp_path / "student"), "--to", "transformers", "--output", str(folder))
    assert ("trust_remote_code" in said) is (name in OWN_CODE)
    model = AutoModel.from_pretrained(folder, trust_remote_code=name in OWN_CODE).eval()
    for loudness in (1.0, 0.01):  # where it is quiet, what is added to the variance counts
        with torch.no_grad():
            theirs = model(prepared(folder, loudness * waveform), output_hidden_states=True)
            ours = encoder(torch.from_numpy(loudness * waveform)[None])
        assert (theirs.last_hidden_state - ours.last_hidden_state).abs().max() < 1e-4
        for mine, reference in zip(ours.hidden_states, theirs.hidden_states, strict=True):
            assert (mine - reference).abs().max() < 1e-4
    again = load(folder)
    assert again.config == encoder.config
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in encoder.state_dict().items())
    normalizes = json.loads((folder / "preprocessor_config.json").read_text())["do_normalize"]
    assert normalizes is (encoder.config.normalize_waveform and encoder.config.normalize_eps == 1e-7)


def test_with_the_folders_own_code_a_batch_equals_its_wavs(tmp_path, capsys, waveform) -> None:
    from transformers import AutoModel

    save(student(**PRUNED), tmp_path / "student")
    exported(capsys, str(tmp_path / "student"), "--to", "transformers", "--output", str(tmp_path / "export"))
    model = AutoModel.from_pretrained(tmp_path / "export", trust_remote_code=True).eval()
    batch = torch.from_numpy(np.stack([waveform, np.concatenate([waveform[:6000], np.zeros(3000, np.float32)])]))
    mask = torch.arange(9000) < torch.tensor([[9000], [6000]])
    with torch.no_grad():
        states = model(batch, attention_mask=mask.long(), output_hidden_states=True, output_attentions=True)
        alone = model(batch[1:, :6000]).last_hidden_state
    assert (states.last_hidden_state[1, : alone.shape[1]] - alone[0]).abs().max() < 1e-4
    assert len(states.hidden_states) == 3
    assert [tuple(maps.shape) for maps in states.attentions] == [(2, 1, 27, 27), (2, 0, 27, 27)]


FRESH = """
import importlib.util, os, sys
sys.path[:] = [path for path in sys.path if not os.path.exists(os.path.join(path, "hubconf.py"))]  # an editable install
import numpy, torch
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
assert importlib.util.find_spec("upstream") is None and importlib.util.find_spec("distiller") is None
waveform = torch.from_numpy(numpy.load(sys.argv[2]))[None]
with torch.no_grad():
    numpy.save(sys.argv[3], model(waveform).last_hidden_state.numpy())
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pruned", "narrow"])
def test_a_process_without_this_repository_runs_the_folder(name, tmp_path, capsys, waveform) -> None:
    encoder = student(**STUDENTS[name])
    save(encoder, tmp_path / "student")
    exported(capsys, str(tmp_path / "student"), "--to", "transformers", "--output", str(tmp_path / "export"))
    np.save(tmp_path / "wav.npy", waveform)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    environment.pop("PYTHONPATH", None)
    arguments = [sys.executable, "-c", FRESH, *(str(tmp_path / file) for file in ("export", "wav.npy", "out.npy"))]
    subprocess.run(arguments, cwd=tmp_path, env=environment, check=True, capture_output=True)
    with torch.no_grad():
        expected = encoder(torch.from_numpy(waveform)[None]).last_hidden_state.numpy()
    assert np.abs(np.load(tmp_path / "out.npy") - expected).max() < 1e-4


@pytest.mark.parametrize("name", ["narrow", "pruned"])
def test_fine_tuning_with_ctc_starts_from_the_folder(name, tmp_path, capsys) -> None:
    from transformers import AutoModelForCTC

    encoder = student(**STUDENTS[name])
    save(encoder, tmp_path / "student")
    exported(capsys, str(tmp_path / "student"), "--to", "transformers", "--output", str(tmp_path / "export"))
    model = AutoModelForCTC.from_pretrained(tmp_path / "export", trust_remote_code=True, vocab_size=5).train()
    torch.manual_seed(0)
    inputs, mask = torch.randn(2, 8000), torch.ones(2, 8000, dtype=torch.long)
    labels = torch.tensor([[1, 2, 3], [4, 2, -100]])
    before = model.state_dict()
    stored = {key: value.clone() for key, value in before.items() if "ffn" in key or "feed_forward" in key}
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss = model(inputs, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert any(not torch.equal(value, model.state_dict()[key]) for key, value in stored.items())
    model.save_pretrained(tmp_path / "tuned")
    tuned = load(tmp_path / "tuned")  # without its head
    with torch.no_grad():
        theirs = model.eval().base_model(inputs).last_hidden_state
        assert (tuned(inputs).last_hidden_state - theirs).abs().max() < 1e-4


def test_dphubert_to_ours_to_an_export_gives_the_same_outputs(tmp_path, capsys) -> None:
    from transformers import AutoModel

    for name in ("dphubert_small", "dpwavlm_small"):
        source, folder = FIXTURES / f"{name}.pth", tmp_path / name
        exported(capsys, str(source), "--to", "transformers", "--output", str(folder))
        model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
        stored = np.load(FIXTURES / f"{name}.npz")
        with torch.no_grad():
            states = model(torch.from_numpy(stored["wav1"])[None], output_hidden_states=True).hidden_states
        for layer, expected in enumerate(stored["single1_hidden_states"]):
            if layer:  # theirs begin with P
                assert np.abs(states[layer].numpy() - expected).max() < 1e-4


def test_a_pruned_pth_of_our_own_making_exports(tmp_path, capsys) -> None:
    encoder = student(**{**PRUNED, "family": "hubert", "attention_heads": ((0,), (0, 1)), "ffn_dims": (7, None)})
    config = {
        "extractor_mode": "group_norm",
        "extractor_conv_layer_config": [list(layer) for layer in encoder.config.conv_layers],
        "extractor_conv_bias": False,
        "encoder_embed_dim": 24,
        "encoder_pos_conv_kernel": 8,
        "encoder_pos_conv_groups": 4,
        "encoder_num_layers": 2,
        "encoder_num_heads": [1, 2],
        "encoder_head_dim": 12,
        "encoder_use_feed_forward": [True, False],
        "encoder_ff_interm_features": [7, 0],
        "encoder_layer_norm_first": False,
    }
    state = dphubert.TABLE.to_foreign(encoder.state_dict())
    torch.save({"state_dict": state, "config": config}, tmp_path / "pruned.pth")
    exported(capsys, str(tmp_path / "pruned.pth"), "--to", "transformers", "--output", str(tmp_path / "export"))
    again = load(tmp_path / "export").state_dict()
    assert all(torch.equal(value, again[key]) for key, value in encoder.state_dict().items())


def test_an_export_that_deviates_is_not_kept(tmp_path, capsys, monkeypatch) -> None:
    save(student(), tmp_path / "student")
    whole = export_transformers._plain_files

    def spoiled(encoder: SpeechEncoder, recognizer: None) -> dict[str, bytes | str]:
        with torch.no_grad():
            encoder.layers[1].feed_forward.output.bias[0] += 0.01
        files = whole(encoder, recognizer)
        with torch.no_grad():
            encoder.layers[1].feed_forward.output.bias[0] -= 0.01
        return files

    monkeypatch.setattr(export_transformers, "_plain_files", spoiled)
    argv = (str(tmp_path / "student"), "--to", "transformers", "--output", str(tmp_path / "export"))
    assert "is not written: transformers' hidden states differ from the student's by 0.0" in refused(capsys, *argv)
    assert not (tmp_path / "export").exists()


def test_an_export_of_what_is_no_number_is_not_kept(tmp_path) -> None:
    broken = student()
    with torch.no_grad():
        broken.layer_norm.bias[0] = float("nan")
    with pytest.raises(UserError, match="is not written: transformers' hidden states differ from the student's by inf"):
        export_transformers.to_transformers(broken, tmp_path / "export", "")
    assert not (tmp_path / "export").exists()


def test_the_check_goes_through_the_folders_own_feature_extractor(tmp_path, monkeypatch) -> None:
    plain = huggingface_writing.preprocessor
    monkeypatch.setattr(huggingface_writing, "preprocessor", lambda config: {**plain(config), "do_normalize": False})
    with pytest.raises(UserError, match="is not written: transformers' hidden states differ from the student's by"):
        export_transformers.to_transformers(student(**STUDENTS["large"]), tmp_path / "export", "")


def test_a_folder_of_something_else_is_not_replaced(tmp_path, capsys) -> None:
    save(student(), tmp_path / "student")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    argv = (str(tmp_path / "student"), "--to", "transformers", "--output", str(tmp_path / "thesis"))
    assert "is not replaced: it contains chapter.tex, which does not belong" in refused(capsys, *argv)
    assert load_file(tmp_path / "student" / "model.safetensors")


@pytest.mark.parametrize("folders", ["as they are", "unwritable"])
def test_the_check_leaves_nothing_outside_the_output(folders, tmp_path, capsys, monkeypatch) -> None:
    """Neither in the cache of modules nor in a folder for temporary files, which there need not be."""
    from transformers import dynamic_module_utils

    cache = tmp_path / "modules" if folders == "as they are" else Path(os.devnull) / "modules"
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(cache))
    if folders == "unwritable":
        monkeypatch.setattr(tempfile, "gettempdir", lambda: os.devnull)
    save(student(**PRUNED), tmp_path / "student")
    exported(capsys, str(tmp_path / "student"), "--to", "transformers", "--output", str(tmp_path / "export"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "student"]
    shipped = b"".join(path.read_bytes() for path in (tmp_path / "export").iterdir())
    assert str(tmp_path).encode() not in shipped
