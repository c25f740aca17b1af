"""DPHuBERT's and DPWavLM's pruned checkpoints: .pth = {state_dict, config, ...} with torchaudio's names.

Heads and feed-forward widths differ between layers, either may be missing, and `dummy_weight` scales the last
convolution's channels by their folded gates.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, tensor, zeros

from ..config import EncoderConfig
from ..encoder import SpeechEncoder
from ..errors import UserError
from . import huggingface
from .files import refuse_configuration
from .keys import KeyTable, build, listed
from .settings import count, plain_settings, translated

NAME = "DPHuBERT or DPWavLM .pth"

CHANNEL_SCALE = "feature_extractor.dummy_weight"
RELATIVE_TABLE = "encoder.transformer.layers.0.attention.rel_attn_embed.weight"


TABLE = KeyTable(
    names={
        **{ours: name.replace("encoder.", "encoder.transformer.", 1) for ours, name in huggingface.TABLE.names.items()},
        "feature_extractor.scale": CHANNEL_SCALE,
        "feature_projection.": "encoder.feature_projection.",
        "positional.": "encoder.transformer.pos_conv_embed.conv.",
    },
    ignored=(
        "aux.*",  # a head for fine-tuning
        "encoder.transformer.layers.*layer_norm.*",  # of a pruned sublayer, which nothing feeds in pre-LN models
    ),
)

EXTRACTORS = {"group_norm": "group", "layer_norm": "layer"}

# Settings with another name here.
REQUIRED_NAMES = {
    "encoder_embed_dim": "embed_dim",
    "extractor_conv_layer_config": "conv_layers",
    "extractor_conv_bias": "conv_bias",
    "encoder_pos_conv_kernel": "positional_kernel",
    "encoder_pos_conv_groups": "positional_groups",
    "encoder_layer_norm_first": "layer_norm_first",
}
POSITION_NAMES = {"encoder_num_buckets": "relative_buckets", "encoder_max_distance": "relative_max_distance"}
OPTIONAL_NAMES = {
    "normalize_waveform": "normalize_waveform",
    "encoder_projection_dropout": "feature_dropout",
    "encoder_dropout": "hidden_dropout",
    "encoder_attention_dropout": "attention_dropout",
    "encoder_ff_interm_dropout": "activation_dropout",
}
NAMES = REQUIRED_NAMES | POSITION_NAMES | OPTIONAL_NAMES

REQUIRED = (*REQUIRED_NAMES, "extractor_mode", "encoder_num_layers", "encoder_ff_interm_features")
WAVLM = (*POSITION_NAMES, "encoder_total_num_heads", "encoder_remaining_heads")
SETTINGS = (
    *REQUIRED, *WAVLM, *OPTIONAL_NAMES, "encoder_num_heads", "encoder_head_dim", "encoder_use_attention",
    "encoder_use_feed_forward",
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
    return build(config, state, str(path), TABLE)


def parse_config(values: Mapping[str, Any], feature_scale: bool, source: str) -> EncoderConfig:
    """The configuration of torchaudio's model as ours.

    Raises:
        UserError: unknown or missing keys, or values out of range.
    """
    unknown = [str(key) for key in values if key not in SETTINGS]
    if unknown:
        raise UserError(f"{source}: its config has unknown {listed(unknown)}")
    values = plain_settings(values, SETTINGS, source)
    relative = any(key in values for key in WAVLM)
    missing = [key for key in (*REQUIRED, *(WAVLM if relative else ("encoder_num_heads",))) if key not in values]
    if missing:
        raise UserError(f"{source}: its config lacks {listed(missing)}")
    num_heads, head_dim, heads = (_wavlm_heads if relative else _hubert_heads)(values, source)
    has_attention = _per_layer(values, "encoder_use_attention", source, default=True)
    widths = _per_layer(values, "encoder_ff_interm_features", source)
    has_ffn = _per_layer(values, "encoder_use_feed_forward", source, default=True)
    parsed = {ours: values[theirs] for theirs, ours in NAMES.items() if theirs in values} | {
        "family": "wavlm" if relative else "hubert",
        "num_heads": num_heads,
        "head_dim": head_dim,
        "attention_heads": [own if used and own else None for own, used in zip(heads, has_attention, strict=True)],
        "ffn_dims": [width if used and width else None for width, used in zip(widths, has_ffn, strict=True)],
        "conv_norm": translated(values["extractor_mode"], EXTRACTORS, f"{source}: extractor_mode"),
        "feature_scale": feature_scale,
        "normalize_eps": 1e-5,  # torch's layer norm over the whole waveform
    }
    return EncoderConfig.from_dict(parsed, source)


def _hubert_heads(values: Mapping[str, Any], source: str) -> tuple[int, int, list[Any]]:
    """Heads before pruning, their width, and each layer's heads: only the counts are known, and only they matter."""
    width = count(values["encoder_embed_dim"], f"{source}: encoder_embed_dim", most=2**16)
    numbers = _per_layer(values, "encoder_num_heads", source)
    for layer, number in enumerate(numbers):
        count(number, f"{source}: encoder_num_heads[{layer}]", least=0)
    head_dim = values.get("encoder_head_dim")
    if head_dim is None:  # an unpruned model
        head_dim = width // max(1, *numbers)
    count(head_dim, f"{source}: encoder_head_dim", most=width)
    return width // head_dim, head_dim, [list(range(number)) for number in numbers]


def _wavlm_heads(values: Mapping[str, Any], source: str) -> tuple[int, int, list[Any]]:
    """As `_hubert_heads`; here each layer lists its heads, None being all of them."""
    width = count(values["encoder_embed_dim"], f"{source}: encoder_embed_dim", most=2**16)
    total, *others = _per_layer(values, "encoder_total_num_heads", source)
    if any(other != total for other in others):
        raise UserError(f"{source}: encoder_total_num_heads differs between layers")
    if width % count(total, f"{source}: encoder_total_num_heads"):
        raise UserError(f"{source}: encoder_total_num_heads is {total}, but it must be a divisor of {width} channels")
    remaining = _per_layer(values, "encoder_remaining_heads", source)
    return total, width // total, [list(range(total)) if heads is None else heads for heads in remaining]


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
    """Drop the gate constants of pruned heads, which published files still contain."""
    for layer, heads in enumerate(config.attention_heads):
        key = f"encoder.transformer.layers.{layer}.attention.gru_rel_pos_const"
        constant = state.get(key)
        if heads and isinstance(constant, Tensor) and constant.numel() == config.num_heads:
            state[key] = constant.flatten()[tensor(heads)]
