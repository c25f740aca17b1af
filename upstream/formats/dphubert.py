"""DPHuBERT's and DPWavLM's pruned checkpoints: .pth = {state_dict, config, ...} with torchaudio's names.

Heads and feed-forward widths differ between layers, either may be missing, and `dummy_weight` scales the last
convolution's channels by their folded gates.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, tensor, zeros

from ..config import EncoderConfig
from ..encoder import SpeechEncoder
from ..errors import UserError, shown
from . import huggingface
from .files import refuse_configuration
from .keys import Key, KeyTable, build, listed
from .settings import count, plain_settings, translated

NAME = "DPHuBERT or DPWavLM .pth"

CHANNEL_SCALE = "feature_extractor.dummy_weight"
RELATIVE_TABLE = "encoder.transformer.layers.0.attention.rel_attn_embed.weight"


def _torchaudio(name: str) -> str:
    """torchaudio's name of a parameter of `transformers`."""
    return f"encoder.{name}" if name.startswith("feature_p") else name.replace("encoder.", "encoder.transformer.", 1)


TABLE = KeyTable(
    keys=(
        Key(CHANNEL_SCALE, "feature_extractor.scale"),
        Key("encoder.transformer.pos_conv_embed.conv.weight_g", "positional.weight_g"),
        Key("encoder.transformer.pos_conv_embed.conv.weight_v", "positional.weight_v"),
        *(replace(key, foreign=_torchaudio(key.foreign)) for key in huggingface.TABLE.keys),
    ),
    ignored=("aux.*",),  # a head for fine-tuning
)

EXTRACTORS = {"group_norm": "group", "layer_norm": "layer"}
REQUIRED = (
    "extractor_mode", "extractor_conv_layer_config", "extractor_conv_bias", "encoder_embed_dim",
    "encoder_pos_conv_kernel", "encoder_pos_conv_groups", "encoder_num_layers", "encoder_ff_interm_features",
    "encoder_layer_norm_first",
)  # fmt: skip
WAVLM = ("encoder_total_num_heads", "encoder_remaining_heads", "encoder_num_buckets", "encoder_max_distance")
OPTIONAL = (
    "normalize_waveform", "encoder_num_heads", "encoder_head_dim", "encoder_use_attention",
    "encoder_use_feed_forward", "encoder_projection_dropout", "encoder_attention_dropout",
    "encoder_ff_interm_dropout", "encoder_dropout",
    # without effect on the encoder's output
    "encoder_layer_drop", "aux_num_out", "extractor_prune_conv_channels", "encoder_prune_attention_heads",
    "encoder_prune_attention_layer", "encoder_prune_feed_forward_intermediate", "encoder_prune_feed_forward_layer",
)  # fmt: skip


def matches(content: Mapping[str, Any]) -> bool:
    """Whether the content of a file is of this format."""
    return isinstance(content.get("state_dict"), Mapping) and isinstance(content.get("config"), Mapping)


def read(content: Mapping[str, Any], path: Path, model_config: Path | None) -> SpeechEncoder:
    """The encoder in the content of a file.

    Raises:
        UserError: an unsupported setting, gates that are not removed yet, or anything wrong with the weights.
    """
    refuse_configuration(path, model_config)
    state = dict(content["state_dict"])
    config = parse_config(content["config"], CHANNEL_SCALE in state, str(path))
    gates = [str(key) for key in state if str(key).endswith("log_alpha")]
    if gates:
        raise UserError(f"{path} still has gates ({len(gates)} log_alpha keys): it was saved before pruning")
    if config.relative_position:
        _select_heads(config, state)
        if RELATIVE_TABLE not in state and config.attention_heads[0] is None:
            # The table was removed with the first layer's attention; without it, later layers attend without a bias.
            state[RELATIVE_TABLE] = zeros(1).expand(config.relative_buckets, config.num_heads)
    if config.layer_norm_first:
        _drop_unused_norms(config, state)
    return build(config, state, str(path), TABLE)


def parse_config(values: Mapping[str, Any], feature_scale: bool, source: str) -> EncoderConfig:
    """The configuration of torchaudio's model as ours.

    Raises:
        UserError: unknown or missing keys, or values out of range.
    """
    unknown = [str(key) for key in values if key not in (*REQUIRED, *WAVLM, *OPTIONAL)]
    if unknown:
        raise UserError(f"{source}: its config has unknown {listed(unknown)}")
    values = plain_settings(values, (*REQUIRED, *WAVLM, *OPTIONAL), source)
    relative = any(key in values for key in WAVLM)
    missing = [key for key in (*REQUIRED, *(WAVLM if relative else ("encoder_num_heads",))) if key not in values]
    if missing:
        raise UserError(f"{source}: its config lacks {listed(missing)}")
    num_heads, head_dim, attention = (_wavlm_heads if relative else _hubert_heads)(values, source)
    widths = _per_layer(values, "encoder_ff_interm_features", source)
    used = _per_layer(values, "encoder_use_feed_forward", source, default=True)
    parsed = {
        "family": "wavlm" if relative else "hubert",
        "embed_dim": values["encoder_embed_dim"],
        "num_heads": num_heads,
        "head_dim": head_dim,
        "attention_heads": attention,
        "ffn_dims": [width if is_used and width else None for width, is_used in zip(widths, used, strict=True)],
        "conv_layers": values["extractor_conv_layer_config"],
        "conv_bias": values["extractor_conv_bias"],
        "conv_norm": translated(values["extractor_mode"], EXTRACTORS, f"{source}: extractor_mode"),
        "feature_scale": feature_scale,
        "positional_kernel": values["encoder_pos_conv_kernel"],
        "positional_groups": values["encoder_pos_conv_groups"],
        "layer_norm_first": values["encoder_layer_norm_first"],
        "normalize_waveform": values.get("normalize_waveform", False),
        "normalize_eps": 1e-5,  # torch's layer norm over the whole waveform
        "feature_dropout": values.get("encoder_projection_dropout", 0.0),
        "hidden_dropout": values.get("encoder_dropout", 0.0),
        "attention_dropout": values.get("encoder_attention_dropout", 0.0),
        "activation_dropout": values.get("encoder_ff_interm_dropout", 0.0),
    }
    if relative:
        buckets, distance = values["encoder_num_buckets"], values["encoder_max_distance"]
        parsed |= {"relative_buckets": buckets, "relative_max_distance": distance}
    return EncoderConfig.from_dict(parsed, source)


def _hubert_heads(values: Mapping[str, Any], source: str) -> tuple[int, int, list[list[int] | None]]:
    """Heads before pruning, their width, and the heads of each layer: only their numbers are known, and matter."""
    remaining = _per_layer(values, "encoder_num_heads", source)
    used = _per_layer(values, "encoder_use_attention", source, default=True)
    width = values["encoder_embed_dim"]
    for number in remaining:
        if type(number) is not int or not 0 <= number <= 1024:
            raise UserError(f"{source}: encoder_num_heads has {shown(number)}, but it must have numbers up to 1024")
    head_dim = values.get("encoder_head_dim")
    if head_dim is None:  # an unpruned model
        head_dim = width // max(remaining) if type(width) is int and max(remaining) else 0
    head_dim = count(head_dim, f"{source}: encoder_head_dim", most=2**16)
    num_heads = max(1, *remaining, width // head_dim if type(width) is int else 0)
    heads = [
        list(range(number)) if is_used and number else None for number, is_used in zip(remaining, used, strict=True)
    ]
    return num_heads, head_dim, heads


def _wavlm_heads(values: Mapping[str, Any], source: str) -> tuple[int, int, list[list[int] | None]]:
    """As `_hubert_heads`; here each layer lists its heads."""
    totals = _per_layer(values, "encoder_total_num_heads", source)
    used = _per_layer(values, "encoder_use_attention", source, default=True)
    remaining = _per_layer(values, "encoder_remaining_heads", source)
    total = count(totals[0], f"{source}: encoder_total_num_heads")
    width = count(values["encoder_embed_dim"], f"{source}: encoder_embed_dim", most=2**16)
    if any(other != total for other in totals):
        raise UserError(f"{source}: encoder_total_num_heads differs between layers")
    if width % total:
        raise UserError(f"{source}: encoder_total_num_heads is {total}, but it must be a divisor of {width} channels")
    every_head = list(range(total))
    heads = [
        None if not is_used or heads in ([], ()) else every_head if heads is None else heads
        for heads, is_used in zip(remaining, used, strict=True)
    ]
    return total, width // total, heads


def _per_layer(values: Mapping[str, Any], key: str, source: str, default: Any = None) -> list[Any]:
    """A setting of every layer: a list, or one value for all."""
    layers = count(values["encoder_num_layers"], f"{source}: encoder_num_layers")
    value = values.get(key, default)
    if not isinstance(value, (list, tuple)):
        return [value] * layers
    if len(value) != layers:
        raise UserError(f"{source}: {key} has {len(value)} entries, but it must have one for each of {layers} layers")
    return list(value)


def _select_heads(config: EncoderConfig, state: dict[Any, Any]) -> None:
    """Published files contain the gate's constant of every head, also of pruned ones."""
    for layer, heads in enumerate(config.attention_heads):
        key = f"encoder.transformer.layers.{layer}.attention.gru_rel_pos_const"
        constant = state.get(key)
        if heads and isinstance(constant, Tensor) and constant.numel() == config.num_heads:
            state[key] = constant.flatten()[tensor(heads)]


def _drop_unused_norms(config: EncoderConfig, state: dict[Any, Any]) -> None:
    """A pre-LN norm only feeds its own sublayer; the files contain it even if the sublayer was pruned."""
    for name, units in (("layer_norm", config.attention_heads), ("final_layer_norm", config.ffn_dims)):
        for layer, remaining in enumerate(units):
            for part in ("weight", "bias"):
                if remaining is None:
                    state.pop(f"encoder.transformer.layers.{layer}.{name}.{part}", None)
