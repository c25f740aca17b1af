"""Cutting closed units out of a gated encoder: the smaller encoder computes exactly what the gated one computed.

Gate values are folded into the weights behind them: a channel's into the next convolution, a head's and an inner
unit's into the output projection, a sublayer's into that projection and its bias. Behind the last convolution comes
a layer norm, which cannot take a factor, so its channels keep theirs (`feature_scale`). Layer norms over cut
channels go on counting them as the zeros that they were (`unpruned_channels`). DPHuBERT's public code differs there:
its norms count what is left, and the biases of emptied sublayers are lost.
"""

from dataclasses import replace

import torch
from torch import Tensor

from distiller.students.gates import GatedEncoder, Site, Values
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder

State = dict[str, Tensor]


@torch.no_grad()
def cut(student: GatedEncoder, values: Values | None = None) -> SpeechEncoder:
    """The encoder that is left, on the CPU and in eval mode; `student` is not changed.

    Args:
        values: gate values; the deterministic ones of evaluation when left out.
    """
    before = student.config
    values = {site: value.cpu() for site, value in (student.fixed() if values is None else values).items()}
    config = cut_config(before, values)
    state = {key: value.cpu() for key, value in student.encoder.state_dict().items()}
    _cut_extractor(state, before, config, values)
    for index in range(before.num_layers):
        prefix = f"layers.{index}."
        _cut_attention(state, prefix, before, index, values)
        _cut_feed_forward(state, prefix, before, index, values)
        if before.layer_norm_first:  # such a norm only feeds its sublayer
            for sublayer, units in (("attention", config.attention_heads), ("feed_forward", config.ffn_dims)):
                if not units[index]:
                    _remove(state, f"{prefix}{sublayer}_norm.")
    encoder = SpeechEncoder(config)
    encoder.load_state_dict(state)
    return encoder.eval()


def cut_config(before: EncoderConfig, values: Values) -> EncoderConfig:
    """The shape of what is left: units whose gate is open."""
    convolutions = [
        (len(_kept(values, "channels", index, channels)[0]), kernel, stride)
        for index, (channels, kernel, stride) in enumerate(before.conv_layers)
    ]
    widths = tuple(before.norm_width(index) for index in range(len(convolutions)))
    heads, inner = [], []
    for index, (layer_heads, ffn_dim) in enumerate(zip(before.attention_heads, before.ffn_dims, strict=True)):
        left, _ = _kept(values, "heads", index, len(layer_heads or ()))
        closed = layer_heads is None or not _whole(values, "attention", index)
        heads.append(None if closed else tuple((layer_heads or ())[unit] for unit in left.tolist()))
        left, _ = _kept(values, "ffn_units", index, ffn_dim or 0)
        inner.append(None if ffn_dim is None or not _whole(values, "ffn", index) else len(left))
    return replace(
        before,
        conv_layers=tuple(convolutions),
        unpruned_channels=widths if widths != tuple(layer[0] for layer in convolutions) else (),
        feature_scale=before.feature_scale or Site("channels", len(convolutions) - 1) in values,
        attention_heads=tuple(heads),
        ffn_dims=tuple(inner),
    )


def _kept(values: Values, unit: str, index: int, count: int) -> tuple[Tensor, Tensor]:
    """Indices of a site's open units, and their values; without a gate all units, at 1."""
    value = values.get(Site(unit, index), torch.ones(count))
    left = (value > 0).nonzero()[:, 0]
    return left, value[left]


def _whole(values: Values, unit: str, index: int) -> float:
    value = values.get(Site(unit, index))
    return 1.0 if value is None else float(value)


def _remove(state: State, prefix: str) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        del state[key]


def _cut_extractor(state: State, before: EncoderConfig, after: EncoderConfig, values: Values) -> None:
    inputs, factors = torch.arange(1), torch.ones(1)  # open channels of the convolution before, and their gates
    for index, (channels, _, _) in enumerate(before.conv_layers):
        prefix = f"feature_extractor.conv_layers.{index}."
        left, value = _kept(values, "channels", index, channels)
        for key in [key for key in state if key.startswith(prefix)]:
            state[key] = state[key][left]
        state[prefix + "conv.weight"] = state[prefix + "conv.weight"][:, inputs] * factors[:, None]
        if before.conv_norm == "layer":  # gated in front of its norm too
            for key in (f"{prefix}conv.weight", f"{prefix}conv.bias"):
                if key in state:
                    state[key] = state[key] * value.reshape(-1, *[1] * (state[key].ndim - 1))
        inputs, factors = left, value
    if after.feature_scale:
        scale = state.get("feature_extractor.scale", torch.ones(before.conv_layers[-1][0]))
        state["feature_extractor.scale"] = scale[inputs] * factors
    _cut_projection(state, before, after, inputs)


def _cut_projection(state: State, before: EncoderConfig, after: EncoderConfig, left: Tensor) -> None:
    """P of the remaining channels: W_K [gamma_K (x_K - mu) / sigma] + (b + W beta) - (mu / sigma) v.

    v, the sum of W_c gamma_c over what was cut, is the pruned column; gamma_K and beta_K stay in the norm.
    """
    prefix = "feature_projection."
    closed = torch.ones(before.conv_layers[-1][0], dtype=torch.bool)
    closed[left] = False
    weight = state.get(prefix + "projection.weight")
    if weight is not None:
        state[prefix + "projection.weight"] = weight[:, left]
    if not before.feature_norm:
        return
    gamma, beta = state[prefix + "layer_norm.weight"], state[prefix + "layer_norm.bias"]
    state[prefix + "layer_norm.weight"], state[prefix + "layer_norm.bias"] = gamma[left], beta[left]
    if weight is not None:
        state[prefix + "projection.bias"] = state[prefix + "projection.bias"] + weight[:, closed] @ beta[closed]
        if after.norm_width(-1) > len(left):
            column = state.get(prefix + "pruned_column", torch.zeros(before.embed_dim))
            state[prefix + "pruned_column"] = column + weight[:, closed] @ gamma[closed]


def _cut_attention(state: State, prefix: str, before: EncoderConfig, index: int, values: Values) -> None:
    if not before.attention_heads[index]:
        return
    whole = _whole(values, "attention", index)
    left, value = _kept(values, "heads", index, len(before.attention_heads[index] or ()))
    prefix += "attention."
    bias = state[prefix + "out_proj.bias"] * whole
    if not whole or not len(left):
        _remove(state, prefix)
        if whole:
            state[prefix + "bias"] = bias
        return
    rows = (left[:, None] * before.head_dim + torch.arange(before.head_dim)).flatten()
    for name in ("q_proj", "k_proj", "v_proj"):
        for kind in ("weight", "bias"):
            state[f"{prefix}{name}.{kind}"] = state[f"{prefix}{name}.{kind}"][rows]
    factors = value.repeat_interleave(before.head_dim) * whole
    state[prefix + "out_proj.weight"] = state[prefix + "out_proj.weight"][:, rows] * factors
    state[prefix + "out_proj.bias"] = bias
    if before.relative_position:
        state[prefix + "gate.constant"] = state[prefix + "gate.constant"][left]


def _cut_feed_forward(state: State, prefix: str, before: EncoderConfig, index: int, values: Values) -> None:
    if not before.ffn_dims[index]:
        return
    whole = _whole(values, "ffn", index)
    left, value = _kept(values, "ffn_units", index, before.ffn_dims[index] or 0)
    prefix += "feed_forward."
    bias = state[prefix + "output.bias"] * whole
    if not whole or not len(left):
        _remove(state, prefix)
        if whole:
            state[prefix + "bias"] = bias
        return
    for kind in ("weight", "bias"):
        state[f"{prefix}intermediate.{kind}"] = state[f"{prefix}intermediate.{kind}"][left]
    state[prefix + "output.weight"] = state[prefix + "output.weight"][:, left] * value * whole
    state[prefix + "output.bias"] = bias
