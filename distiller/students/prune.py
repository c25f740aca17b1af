"""Removing closed units from a gated encoder: the smaller encoder computes exactly what the gated one computed.

Gate values are folded into the weights after them: a channel's into the next convolution, a head's and an inner
unit's into the output projection, a sublayer's into that projection and its bias. The last convolution is followed by
a layer norm, which cannot absorb a factor, so its channels keep theirs (`feature_scale`). Layer norms over pruned
channels still count them as the zeros that they were (`unpruned_channels`). DPHuBERT's public code differs here:
its norms count only the remaining channels, and the biases of emptied sublayers are lost.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from distiller.students.gates import GatedEncoder, GateSite, GateValues, unit_count
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder

State = dict[str, Tensor]


class Sublayer(NamedTuple):
    """One of the two sublayers of each Transformer layer."""

    name: str  # in the state
    gate: str  # on its whole output, of UNITS
    units: str  # of UNITS
    inputs: tuple[str, ...]  # linear layers into its units
    output: str  # the linear layer out of them


SUBLAYERS = (
    Sublayer("attention", "attention", "heads", ("q_proj", "k_proj", "v_proj"), "out_proj"),
    Sublayer("feed_forward", "ffn", "ffn_units", ("intermediate",), "output"),
)


@torch.no_grad()
def remove_closed_units(student: GatedEncoder, values: GateValues | None = None) -> SpeechEncoder:
    """The encoder without its closed units, on the CPU and in eval mode; `student` is not changed.

    Args:
        values: gate values; by default the deterministic ones of evaluation.
    """
    before = student.config
    values = {site: value.cpu() for site, value in (student.fixed() if values is None else values).items()}
    config = pruned_shape(before, values)
    state = {key: value.cpu() for key, value in student.encoder.state_dict().items()}
    _prune_extractor(state, before, config, values)
    for index in range(before.num_layers):
        for sublayer in SUBLAYERS:
            _prune_sublayer(state, sublayer, before, index, values)
    encoder = SpeechEncoder(config)
    encoder.load_state_dict(state)
    return encoder.eval()


def pruned_shape(before: EncoderConfig, values: GateValues) -> EncoderConfig:
    """The shape of the remaining encoder: units whose gate is open."""
    convolutions = [
        (len(_open_units(values, before, "channels", index)[0]), kernel, stride)
        for index, (_, kernel, stride) in enumerate(before.conv_layers)
    ]
    widths = tuple(before.norm_width(index) for index in range(len(convolutions)))
    heads, inner = [], []
    for index, (layer_heads, ffn_dim) in enumerate(zip(before.attention_heads, before.ffn_dims, strict=True)):
        remaining, _ = _open_units(values, before, "heads", index)
        closed = layer_heads is None or not _sublayer_gate(values, "attention", index)
        heads.append(None if closed else tuple((layer_heads or ())[unit] for unit in remaining.tolist()))
        remaining, _ = _open_units(values, before, "ffn_units", index)
        inner.append(None if ffn_dim is None or not _sublayer_gate(values, "ffn", index) else len(remaining))
    return replace(
        before,
        conv_layers=tuple(convolutions),
        unpruned_channels=widths if widths != tuple(layer[0] for layer in convolutions) else (),
        feature_scale=before.feature_scale or GateSite("channels", len(convolutions) - 1) in values,
        attention_heads=tuple(heads),
        ffn_dims=tuple(inner),
    )


def _open_units(values: GateValues, before: EncoderConfig, unit: str, index: int) -> tuple[Tensor, Tensor]:
    """Indices of a site's open units, and their values; without a gate all units, at 1."""
    value = values.get(GateSite(unit, index), torch.ones(unit_count(before, unit, index)))
    remaining = (value > 0).nonzero()[:, 0]
    return remaining, value[remaining]


def _sublayer_gate(values: GateValues, unit: str, index: int) -> float:
    """The gate of an entire sublayer; 1 without one."""
    return float(values.get(GateSite(unit, index), 1.0))


def _remove(state: State, prefix: str) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        del state[key]


def _prune_extractor(state: State, before: EncoderConfig, after: EncoderConfig, values: GateValues) -> None:
    inputs, factors = torch.arange(1), torch.ones(1)  # open channels of the convolution before, and their gates
    for index in range(len(before.conv_layers)):
        prefix = f"feature_extractor.conv_layers.{index}."
        remaining, value = _open_units(values, before, "channels", index)
        for key in [key for key in state if key.startswith(prefix)]:
            state[key] = state[key][remaining]
        state[prefix + "conv.weight"] = state[prefix + "conv.weight"][:, inputs] * factors[:, None]
        if before.conv_norm == "layer":  # gated in front of its norm too
            for key in (f"{prefix}conv.weight", f"{prefix}conv.bias"):
                if key in state:
                    state[key] = state[key] * value.reshape(-1, *[1] * (state[key].ndim - 1))
        inputs, factors = remaining, value
    if after.feature_scale:
        scale = state.get("feature_extractor.scale", torch.ones(before.conv_layers[-1][0]))
        state["feature_extractor.scale"] = scale[inputs] * factors
    _prune_projection(state, before, after, inputs)


def _prune_projection(state: State, before: EncoderConfig, after: EncoderConfig, remaining: Tensor) -> None:
    """P of the remaining channels K: W_K [gamma_K (x_K - mu) / sigma] + (b + W beta) - (mu / sigma) v.

    v, the sum of W_c gamma_c over the removed channels, is the pruned column; gamma_K and beta_K stay in the norm.
    """
    prefix = "feature_projection."
    closed = torch.ones(before.conv_layers[-1][0], dtype=torch.bool)
    closed[remaining] = False
    weight = state.get(prefix + "projection.weight")
    if weight is not None:
        state[prefix + "projection.weight"] = weight[:, remaining]
    if not before.feature_norm:
        return
    gamma, beta = state[prefix + "layer_norm.weight"], state[prefix + "layer_norm.bias"]
    state[prefix + "layer_norm.weight"], state[prefix + "layer_norm.bias"] = gamma[remaining], beta[remaining]
    if weight is not None:
        state[prefix + "projection.bias"] = state[prefix + "projection.bias"] + weight[:, closed] @ beta[closed]
        if after.norm_width(-1) > len(remaining):
            column = state.get(prefix + "pruned_column", torch.zeros(before.embed_dim))
            state[prefix + "pruned_column"] = column + weight[:, closed] @ gamma[closed]


def _prune_sublayer(state: State, sublayer: Sublayer, before: EncoderConfig, index: int, values: GateValues) -> None:
    if not unit_count(before, sublayer.units, index):
        return
    remaining, value = _open_units(values, before, sublayer.units, index)
    gate, prefix = _sublayer_gate(values, sublayer.gate, index), f"layers.{index}.{sublayer.name}"
    bias = state[f"{prefix}.{sublayer.output}.bias"] * gate
    if not gate or not len(remaining):
        _remove(state, f"{prefix}.")
        if gate:
            state[f"{prefix}.bias"] = bias  # all that stays of a sublayer without units
        if before.layer_norm_first:  # such a norm only feeds its sublayer
            _remove(state, f"{prefix}_norm.")
        return
    width = before.head_dim if sublayer.units == "heads" else 1
    rows = (remaining[:, None] * width + torch.arange(width)).flatten()
    for name in sublayer.inputs:
        for kind in ("weight", "bias"):
            state[f"{prefix}.{name}.{kind}"] = state[f"{prefix}.{name}.{kind}"][rows]
    weight = f"{prefix}.{sublayer.output}.weight"
    state[weight] = state[weight][:, rows] * (value.repeat_interleave(width) * gate)
    state[f"{prefix}.{sublayer.output}.bias"] = bias
    if (constant := f"{prefix}.gate.constant") in state:  # WavLM's position gate, of the heads
        state[constant] = state[constant][remaining]
