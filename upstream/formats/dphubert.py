"""DPHuBERT's and DPWavLM's pruned checkpoints: .pth = {state_dict, config, ...} in torchaudio's words.

Each layer has its own heads and feed-forward width, either may be missing, and `dummy_weight` scales the last
convolution's channels by their folded gates.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, tensor, zeros

from ..config import EncoderConfig
from ..encoder import SpeechEncoder
from ..errors import UserError, shown
from .keys import Key, KeyTable, build, chosen, listed, plain_settings

NAME = "DPHuBERT or DPWavLM .pth"

_LAYER = "encoder.transformer.layers.#."
CHANNEL_SCALE = "feature_extractor.dummy_weight"
RELATIVE_TABLE = "encoder.transformer.layers.0.attention.rel_attn_embed.weight"

TABLE = KeyTable(
    keys=(
        Key(CHANNEL_SCALE, "feature_extractor.scale"),
        Key("feature_extractor.conv_layers.#.conv.*", "feature_extractor.conv_layers.#.conv.*"),
        Key("feature_extractor.conv_layers.#.layer_norm.*", "feature_extractor.conv_layers.#.layer_norm.*"),
        Key("encoder.feature_projection.layer_norm.*", "feature_projection.layer_norm.*"),
        Key("encoder.feature_projection.projection.*", "feature_projection.projection.*"),
        Key("encoder.transformer.pos_conv_embed.conv.bias", "positional.bias"),
        Key("encoder.transformer.pos_conv_embed.conv.weight_g", "positional.weight_g"),
        Key("encoder.transformer.pos_conv_embed.conv.weight_v", "positional.weight_v"),
        Key("encoder.transformer.pos_conv_embed.conv.parametrizations.weight.original0", "positional.weight_g"),
        Key("encoder.transformer.pos_conv_embed.conv.parametrizations.weight.original1", "positional.weight_v"),
        Key("encoder.transformer.layer_norm.*", "layer_norm.*"),
        Key(RELATIVE_TABLE, "relative_position.weight"),
        Key(f"{_LAYER}attention.q_proj.*", "layers.#.attention.q_proj.*"),
        Key(f"{_LAYER}attention.k_proj.*", "layers.#.attention.k_proj.*"),
        Key(f"{_LAYER}attention.v_proj.*", "layers.#.attention.v_proj.*"),
        Key(f"{_LAYER}attention.out_proj.*", "layers.#.attention.out_proj.*"),
        Key(f"{_LAYER}attention.gru_rel_pos_linear.*", "layers.#.attention.gate.linear.*"),
        Key(f"{_LAYER}attention.gru_rel_pos_const", "layers.#.attention.gate.constant", (1, -1, 1, 1)),
        Key(f"{_LAYER}layer_norm.*", "layers.#.attention_norm.*"),
        Key(f"{_LAYER}feed_forward.intermediate_dense.*", "layers.#.feed_forward.intermediate.*"),
        Key(f"{_LAYER}feed_forward.output_dense.*", "layers.#.feed_forward.output.*"),
        Key(f"{_LAYER}final_layer_norm.*", "layers.#.feed_forward_norm.*"),
    ),
    ignored=("aux.*",),  # a head for fine-tuning
)

EXTRACTORS = {"group_norm": "group", "layer_norm": "layer"}
REQUIRED = (
    "extractor_mode",
    "extractor_conv_layer_config",
    "extractor_conv_bias",
    "encoder_embed_dim",
    "encoder_pos_conv_kernel",
    "encoder_pos_conv_groups",
    "encoder_num_layers",
    "encoder_ff_interm_features",
    "encoder_layer_norm_first",
)
WAVLM = ("encoder_total_num_heads", "encoder_remaining_heads", "encoder_num_buckets", "encoder_max_distance")
OPTIONAL = (
    "normalize_waveform",
    "encoder_num_heads",
    "encoder_head_dim",
    "encoder_use_attention",
    "encoder_use_feed_forward",
    "encoder_projection_dropout",
    "encoder_attention_dropout",
    "encoder_ff_interm_dropout",
    "encoder_dropout",
    # without effect on what the encoder computes
    "encoder_layer_drop",
    "aux_num_out",
    "extractor_prune_conv_channels",
    "encoder_prune_attention_heads",
    "encoder_prune_attention_layer",
    "encoder_prune_feed_forward_intermediate",
    "encoder_prune_feed_forward_layer",
)


def matches(content: Mapping[str, Any]) -> bool:
    """Whether an opened checkpoint is one of these."""
    return isinstance(content.get("state_dict"), Mapping) and isinstance(content.get("config"), Mapping)


def read(content: Mapping[str, Any], path: Path, model_config: Path | None) -> SpeechEncoder:
    """The encoder of an opened checkpoint.

    Raises:
        UserError: an unsupported setting, gates that are not cut yet, and whatever is wrong with the weights.
    """
    if model_config is not None:
        raise UserError(f"{path}: brings its own configuration; {model_config} has no use here")
    state = dict(content["state_dict"])
    config = parse_config(content["config"], CHANNEL_SCALE in state, str(path))
    gates = [str(key) for key in state if str(key).endswith("log_alpha")]
    if gates:
        raise UserError(f"{path}: still has gates that are not cut out ({len(gates)} log_alpha keys)")
    if config.relative_position:
        _select_heads(config, state)
        if RELATIVE_TABLE not in state and config.attention_heads[0] is None:
            # The table went with its layer's attention, and without it later layers attend without a bias.
            state[RELATIVE_TABLE] = zeros(1).expand(config.relative_buckets, config.num_heads)
    if config.layer_norm_first:
        _drop_unused_norms(config, state)
    return build(config, state, str(path), TABLE)


def parse_config(values: Mapping[str, Any], feature_scale: bool, source: str) -> EncoderConfig:
    """The configuration of torchaudio's model as ours.

    Raises:
        UserError: unknown or missing keys, or values that make no encoder.
    """
    unknown = [str(key) for key in values if key not in (*REQUIRED, *WAVLM, *OPTIONAL)]
    if unknown:
        raise UserError(f"{source}: its config has unknown {listed(unknown)}")
    values = plain_settings(values, (*REQUIRED, *WAVLM, *OPTIONAL), source)
    relative = any(key in values for key in WAVLM)
    needed = (*REQUIRED, *(WAVLM if relative else ("encoder_num_heads",)))
    missing = [key for key in needed if key not in values]
    if missing:
        raise UserError(f"{source}: its config lacks {listed(missing)}")
    width = values["encoder_embed_dim"]
    num_heads, head_dim, attention = (_wavlm_heads if relative else _hubert_heads)(values, source)
    used = _per_layer(values, "encoder_use_feed_forward", source, default=True)
    inner = _per_layer(values, "encoder_ff_interm_features", source)
    return EncoderConfig.from_dict(
        {
            "family": "wavlm" if relative else "hubert",
            "embed_dim": width,
            "num_heads": num_heads,
            "head_dim": head_dim,
            "attention_heads": attention,
            "ffn_dims": [units if there and units else None for units, there in zip(inner, used, strict=True)],
            "conv_layers": values["extractor_conv_layer_config"],
            "conv_bias": values["extractor_conv_bias"],
            "conv_norm": chosen(values["extractor_mode"], EXTRACTORS, f"{source}: extractor_mode"),
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
            **(
                {
                    "relative_buckets": values["encoder_num_buckets"],
                    "relative_max_distance": values["encoder_max_distance"],
                }
                if relative
                else {}
            ),
        },
        source,
    )


def _hubert_heads(values: Mapping[str, Any], source: str) -> tuple[int, int, list[list[int] | None]]:
    """Heads before pruning, their width, and how many each layer has: which ones they were makes no difference."""
    left = _per_layer(values, "encoder_num_heads", source)
    used = _per_layer(values, "encoder_use_attention", source, default=True)
    width = values["encoder_embed_dim"]
    for count in left:
        if type(count) is not int or not 0 <= count <= 1024:
            raise UserError(f"{source}: encoder_num_heads has {shown(count)}, not a number of heads")
    head_dim = values.get("encoder_head_dim")
    if head_dim is None:  # an unpruned model
        head_dim = width // max(left) if type(width) is int and max(left) else 0
    if type(head_dim) is not int or not 0 < head_dim <= 2**16:
        raise UserError(f"{source}: encoder_head_dim is {shown(head_dim)}, not a number of channels")
    num_heads = max(1, *left, width // head_dim if type(width) is int else 0)
    return (
        num_heads,
        head_dim,
        [list(range(count)) if there and count else None for count, there in zip(left, used, strict=True)],
    )


def _wavlm_heads(values: Mapping[str, Any], source: str) -> tuple[int, int, list[list[int] | None]]:
    """As `_hubert_heads`; here each layer lists the heads it has."""
    totals = _per_layer(values, "encoder_total_num_heads", source)
    used = _per_layer(values, "encoder_use_attention", source, default=True)
    left = _per_layer(values, "encoder_remaining_heads", source)
    width, total = values["encoder_embed_dim"], totals[0]
    if type(total) is not int or type(width) is not int or not 0 < total <= 1024 or width % total:
        raise UserError(f"{source}: encoder_total_num_heads ({shown(total)}) does not divide {shown(width)} channels")
    if any(other != total for other in totals):
        raise UserError(f"{source}: encoder_total_num_heads differs between layers")
    everything = list(range(total))
    return (
        total,
        width // total,
        [
            None if not there or own in ([], ()) else everything if own is None else own
            for own, there in zip(left, used, strict=True)
        ],
    )


def _per_layer(values: Mapping[str, Any], key: str, source: str, default: Any = None) -> list[Any]:
    """A setting of every layer: a list, or one value for all."""
    layers, value = values["encoder_num_layers"], values.get(key, default)
    if type(layers) is not int or not 0 < layers <= 1024:
        raise UserError(f"{source}: encoder_num_layers is {shown(layers)}, not a number of layers")
    if not isinstance(value, (list, tuple)):
        return [value] * layers
    if len(value) != layers:
        raise UserError(f"{source}: {key} has {len(value)} entries for {layers} layers")
    return list(value)


def _select_heads(config: EncoderConfig, state: dict[Any, Any]) -> None:
    """Published files keep the gate's constant of every head, pruned or not."""
    for layer, heads in enumerate(config.attention_heads):
        key = f"encoder.transformer.layers.{layer}.attention.gru_rel_pos_const"
        constant = state.get(key)
        if heads and isinstance(constant, Tensor) and constant.numel() == config.num_heads:
            state[key] = constant.flatten()[tensor(heads)]


def _drop_unused_norms(config: EncoderConfig, state: dict[Any, Any]) -> None:
    """A pre-LN norm feeds its own sublayer only; the files keep it where the sublayer is gone."""
    for name, units in (("layer_norm", config.attention_heads), ("final_layer_norm", config.ffn_dims)):
        for layer, left in enumerate(units):
            for part in ("weight", "bias"):
                if left is None:
                    state.pop(f"encoder.transformer.layers.{layer}.{name}.{part}", None)
