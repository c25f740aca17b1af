"""Removing closed units from a gated encoder: the smaller encoder computes exactly what the gated one computed.

Gate values are folded into the weights behind them: a channel's into the next convolution, a head's and an inner
unit's into the output projection, a sublayer's into that projection and its bias. The last convolution is followed by
a layer norm, which cannot take a factor, so its channels keep theirs (`feature_scale`). Layer norms over pruned
channels go on counting them as the zeros that they were (`unpruned_channels`). DPHuBERT's public code differs there:
its norms count only the remaining channels, and the biases of emptied sublayers are lost.
"""

from dataclasses import replace

import torch
from torch import Tensor

from distiller.students.gates import GatedEncoder, GateSite, GateValues
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder

State = dict[str, Tensor]


@torch.no_grad()
def remove_closed_units(student: GatedEncoder, values: GateValues | None = None) -> SpeechEncoder:
    """The encoder without its closed units, on the CPU and in eval mode; `student` is not changed.

    Args:
        values: gate values; the deterministic ones of evaluation when left out.
    """
    before = student.config
    values = {site: value.cpu() for site, value in (student.fixed() if values is None else values).items()}
    config = pruned_shape(before, values)
    state = {key: value.cpu() for key, value in student.encoder.state_dict().items()}
    _prune_extractor(state, before, config, values)
    for index in range(before.num_layers):
        prefix = f"layers.{index}."
        _prune_attention(state, prefix, before, index, values)
        _prune_feed_forward(state, prefix, before, index, values)
        if before.layer_norm_first:  # such a norm only feeds its sublayer
            for sublayer, units in (("attention", config.attention_heads), ("feed_forward", config.ffn_dims)):
                if not units[index]:
                    _remove(state, f"{prefix}{sublayer}_norm.")
    encoder = SpeechEncoder(config)
    encoder.load_state_dict(state)
    return encoder.eval()


def pruned_shape(before: EncoderConfig, values: GateValues) -> EncoderConfig:
    """The shape of the remaining encoder: units whose gate is open."""
    convolutions = [
        (len(_open_units(values, "channels", index, channels)[0]), kernel, stride)
        for index, (channels, kernel, stride) in enumerate(before.conv_layers)
    ]
    widths = tuple(before.norm_width(index) for index in range(len(convolutions)))
    heads, inner = [], []
    for index, (layer_heads, ffn_dim) in enumerate(zip(before.attention_heads, before.ffn_dims, strict=True)):
        remaining, _ = _open_units(values, "heads", index, len(layer_heads or ()))
        closed = layer_heads is None or not _sublayer_gate(values, "attention", index)
        heads.append(None if closed else tuple((layer_heads or ())[unit] for unit in remaining.tolist()))
        remaining, _ = _open_units(values, "ffn_units", index, ffn_dim or 0)
        inner.append(None if ffn_dim is None or not _sublayer_gate(values, "ffn", index) else len(remaining))
    return replace(
        before,
        conv_layers=tuple(convolutions),
        unpruned_channels=widths if widths != tuple(layer[0] for layer in convolutions) else (),
        feature_scale=before.feature_scale or GateSite("channels", len(convolutions) - 1) in values,
        attention_heads=tuple(heads),
        ffn_dims=tuple(inner),
    )


def _open_units(values: GateValues, unit: str, index: int, count: int) -> tuple[Tensor, Tensor]:
    """Indices of a site's open units, and their values; without a gate all units, at 1."""
    value = values.get(GateSite(unit, index), torch.ones(count))
    remaining = (value > 0).nonzero()[:, 0]
    return remaining, value[remaining]


def _sublayer_gate(values: GateValues, unit: str, index: int) -> float:
    """The gate of an entire sublayer; 1 without one."""
    value = values.get(GateSite(unit, index))
    return 1.0 if value is None else float(value)


def _remove(state: State, prefix: str) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        del state[key]


def _prune_extractor(state: State, before: EncoderConfig, after: EncoderConfig, values: GateValues) -> None:
    inputs, factors = torch.arange(1), torch.ones(1)  # open channels of the convolution before, and their gates
    for index, (channels, _, _) in enumerate(before.conv_layers):
        prefix = f"feature_extractor.conv_layers.{index}."
        remaining, value = _open_units(values, "channels", index, channels)
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


def _prune_attention(state: State, prefix: str, before: EncoderConfig, index: int, values: GateValues) -> None:
    if not before.attention_heads[index]:
        return
    remaining, value = _open_units(values, "heads", index, len(before.attention_heads[index] or ()))
    gate, prefix = _sublayer_gate(values, "attention", index), prefix + "attention."
    if _empty_sublayer(state, prefix, "out_proj", gate, remaining):
        return
    rows = (remaining[:, None] * before.head_dim + torch.arange(before.head_dim)).flatten()
    for name in ("q_proj", "k_proj", "v_proj"):
        for kind in ("weight", "bias"):
            state[f"{prefix}{name}.{kind}"] = state[f"{prefix}{name}.{kind}"][rows]
    factors = value.repeat_interleave(before.head_dim) * gate
    state[prefix + "out_proj.weight"] = state[prefix + "out_proj.weight"][:, rows] * factors
    if before.relative_position:
        state[prefix + "gate.constant"] = state[prefix + "gate.constant"][remaining]


def _prune_feed_forward(state: State, prefix: str, before: EncoderConfig, index: int, values: GateValues) -> None:
    if not before.ffn_dims[index]:
        return
    remaining, value = _open_units(values, "ffn_units", index, before.ffn_dims[index] or 0)
    gate, prefix = _sublayer_gate(values, "ffn", index), prefix + "feed_forward."
    if _empty_sublayer(state, prefix, "output", gate, remaining):
        return
    for kind in ("weight", "bias"):
        state[f"{prefix}intermediate.{kind}"] = state[f"{prefix}intermediate.{kind}"][remaining]
    state[prefix + "output.weight"] = state[prefix + "output.weight"][:, remaining] * value * gate


def _empty_sublayer(state: State, prefix: str, output: str, gate: float, remaining: Tensor) -> bool:
    """Gates the output bias, all that stays of a sublayer without units; True if there are none."""
    bias = state[f"{prefix}{output}.bias"] * gate
    if gate and len(remaining):
        state[f"{prefix}{output}.bias"] = bias
        return False
    _remove(state, prefix)
    if gate:
        state[f"{prefix}bias"] = bias
    return True
