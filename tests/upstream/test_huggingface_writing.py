"""Encoders written for `transformers`, and read again."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from upstream.checkpoint import load, write_folder
from upstream.errors import UserError
from upstream.formats.huggingface_writing import write

TOLERANCE = 1e-4


def write_huggingface(encoder, folder: Path) -> None:
    config, preprocessor, state = write(encoder)
    write_folder(folder, {"config.json": json.dumps(config), "preprocessor_config.json": json.dumps(preprocessor)})
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "changes",
    [
        {"conv_layers": ((16, 10, 5), *((24, 3, 2),) * 4, *((48, 2, 2),) * 2), "projection": False},
        {"family": "wavlm"},
        {"family": "wav2vec2", "conv_norm": "layer", "conv_bias": True, "layer_norm_first": True},
        {"feature_norm": False, "normalize_waveform": True, "hidden_dropout": 0.1},
        {"family": "wavlm", "conv_norm": "layer", "layer_norm_first": True, "normalize_waveform": True},
        {"family": "unispeech-sat"},
        {"family": "data2vec-audio", "conv_norm": "layer", "positional_layers": 3, "normalize_waveform": True},
    ],
    ids=["no projection", "wavlm", "large", "distilhubert", "wavlm large", "unispeech-sat", "data2vec"],
)
def test_ours_to_hugging_face_and_back_is_bit_identical(changes, tiny_encoder, tmp_path, waveforms) -> None:
    from transformers import AutoFeatureExtractor, AutoModel

    encoder = tiny_encoder(**changes)
    write_huggingface(encoder, tmp_path / "export")
    back = load(tmp_path / "export")
    assert back.config == encoder.config
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in encoder.state_dict().items())
    model = AutoModel.from_pretrained(tmp_path / "export").eval()
    prepare = AutoFeatureExtractor.from_pretrained(tmp_path / "export")
    with torch.no_grad():
        inputs = prepare(waveforms[0].numpy(), sampling_rate=16000, return_tensors="pt").input_values
        theirs = model(inputs, output_hidden_states=True)
        ours = encoder(waveforms[:1])
    mine = [*ours.hidden_states, ours.last_hidden_state]
    reference = [*theirs.hidden_states, theirs.last_hidden_state]
    assert max((a - b).abs().max() for a, b in zip(mine, reference, strict=True)) < TOLERANCE


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"attention_heads": ((0, 1), (0, 1, 2, 3), None)}, "different heads"),
        ({"ffn_dims": (64, 60, 64)}, "different feed-forward widths"),
        ({"ffn_dims": (None,) * 3}, "different feed-forward widths"),
        ({"feature_scale": True}, "scaled per channel"),
        ({"family": "wavlm", "feature_norm": False}, "no norm in front of the projection"),
        ({"unpruned_channels": (16, 24, 24, 24, 24, 24, 44, 48)}, "count over pruned channels"),
        ({"normalize_waveform": True, "normalize_eps": 1e-5}, "normalised with epsilon 1e-05"),
        ({"head_dim": 10}, "not embed_dim / num_heads wide"),
        ({"family": "data2vec-audio"}, "it has group norms"),
        ({"family": "data2vec-audio", "conv_norm": "layer", "layer_norm_first": True}, "its layers begin with a norm"),
    ],
)
def test_what_transformers_cannot_hold_is_said(changes, reason, tiny_encoder) -> None:
    with pytest.raises(UserError, match=reason):
        write(tiny_encoder(**changes))


@pytest.mark.parametrize("prefix", ["", "hubert."])
def test_an_identity_projection_that_has_been_trained_is_a_real_one(prefix, tiny_encoder, tmp_path) -> None:
    encoder = tiny_encoder(conv_layers=((16, 10, 5), *((24, 3, 2),) * 4, *((48, 2, 2),) * 2), projection=False)
    write_huggingface(encoder, tmp_path / "export")
    weights = tmp_path / "export" / "model.safetensors"
    state = {prefix + name: value for name, value in load_file(weights).items()}
    save_file(state, weights)
    assert load(tmp_path / "export").config == encoder.config
    key = "feature_projection.projection.weight"
    save_file({**state, prefix + key: 2 * state[prefix + key]}, weights)
    trained = load(tmp_path / "export")
    assert trained.config == replace(encoder.config, projection=True)
    assert torch.equal(trained.state_dict()[key], 2 * torch.eye(encoder.config.embed_dim))
