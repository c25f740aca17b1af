"""The public DPHuBERT code's checkpoints before pruning, through our gates and our cut."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distiller.students.expected_parameters import expected_parameters, opened
from distiller.students.gates import GatedEncoder
from distiller.students.prune import remove_closed_units
from upstream.formats import dphubert

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
PREFIX = "student_model."
GATES = {  # the public names
    "channels": "feature_extractor.conv_layers.{}.hard_concrete.log_alpha",
    "heads": "encoder.transformer.layers.{}.attention.hard_concrete_for_heads.log_alpha",
    "ffn_units": "encoder.transformer.layers.{}.feed_forward.hard_concrete_for_intermediate.log_alpha",
}


def unpruned(config: dict[str, Any], state: dict[str, Tensor]) -> dict[str, Any]:
    """The configuration before pruning, its sizes read off the weights."""
    layers = range(config["encoder_num_layers"])
    heads = state[GATES["heads"].format(0)].numel()
    whole = {
        "extractor_conv_layer_config": [
            [state[GATES["channels"].format(index)].numel(), kernel, stride]
            for index, (_, kernel, stride) in enumerate(config["extractor_conv_layer_config"])
        ],
        "encoder_ff_interm_features": [state[GATES["ffn_units"].format(layer)].numel() for layer in layers],
        "encoder_use_attention": [True for _ in layers],
        "encoder_use_feed_forward": [True for _ in layers],
    }
    if "encoder_remaining_heads" in config:
        whole["encoder_remaining_heads"] = [list(range(heads)) for _ in layers]
    else:
        whole["encoder_num_heads"] = [heads for _ in layers]
    return config | whole


@pytest.mark.parametrize("name", ["dphubert_small", "dpwavlm_small"])
def test_gated_and_cut(name):
    content = torch.load(FIXTURES / f"{name}.distilled.ckpt", weights_only=True)["state_dict"]
    state = {key.removeprefix(PREFIX): value for key, value in content.items() if key.startswith(PREFIX)}
    config = unpruned(json.loads((FIXTURES / f"{name}.config.json").read_text()), state)
    gates = {key: state.pop(key) for key in list(state) if key.endswith("log_alpha")}
    encoder = dphubert.read({"state_dict": state, "config": config}, Path(name), None)
    student = GatedEncoder(encoder, dict.fromkeys(GATES, 0.5)).eval()
    for site, gate in student.by_site().items():
        gate.log_alpha.data = gates.pop(GATES[site.unit].format(site.layer))
    assert not gates

    with np.load(FIXTURES / f"{name}.npz") as file:
        waveform, reference = torch.from_numpy(file["wav0"]), torch.from_numpy(file["masked_model_hidden_states"])
    left = remove_closed_units(student)
    with torch.no_grad():
        gated, pruned = student(waveform[None]), left(waveform[None])
    pairs = zip(
        [gated.projected, *gated.hidden_states[1:]], [pruned.projected, *pruned.hidden_states[1:]], reference[:, 0],
        strict=True,
    )  # fmt: skip
    for of_gates, of_cut, expected in pairs:
        torch.testing.assert_close(of_gates[0], expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(of_cut, of_gates, atol=1e-4, rtol=0)
    total = sum(parameter.numel() for parameter in left.parameters())
    assert total == round(float(expected_parameters(student.config, opened(student.fixed()))))
    emptied = [index for index, heads in enumerate(left.config.attention_heads) if not heads]
    assert emptied
    assert 0 in left.config.ffn_dims
