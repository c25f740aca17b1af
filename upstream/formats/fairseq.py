"""fairseq's checkpoints of HuBERT, WavLM and wav2vec 2.0, and s3prl's conversions of them, without fairseq.

fairseq writes {"model", "cfg" or "args", ...}, s3prl's converter {"model_weight", "model_cfg", "task_cfg", ...}, and
WavLM's authors {"model", "cfg"} with a flat "cfg". The names of parameters and settings are the same in all, and in
STaR's checkpoints too.
"""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import BASE_CONV_LAYERS, EncoderConfig
from ..encoder import SpeechEncoder
from ..errors import UserError
from .convolutions import parse_conv_layers
from .files import refuse_configuration
from .keys import KeyTable, build
from .settings import check_fixed, equal_layers, plain_settings, translated

NAME = "fairseq or s3prl-converted .pt of HuBERT, WavLM and wav2vec 2.0"

KEYS = {
    "feature_extractor.conv_layers.#.conv.": "feature_extractor.conv_layers.#.0.",
    "feature_extractor.conv_layers.#.layer_norm.": "feature_extractor.conv_layers.#.2.",
    "feature_projection.layer_norm.": "layer_norm.",
    "feature_projection.projection.": "post_extract_proj.",
    "positional.": "encoder.pos_conv.0.",
    "layer_norm.": "encoder.layer_norm.",
    "relative_position.": "encoder.layers.0.self_attn.relative_attention_bias.",
    "layers.#.attention.": "encoder.layers.#.self_attn.",
    "layers.#.attention.gate.linear.": "encoder.layers.#.self_attn.grep_linear.",
    "layers.#.attention.gate.constant": "encoder.layers.#.self_attn.grep_a",
    "layers.#.attention_norm.": "encoder.layers.#.self_attn_layer_norm.",
    "layers.#.feed_forward.intermediate.": "encoder.layers.#.fc1.",
    "layers.#.feed_forward.output.": "encoder.layers.#.fc2.",
    "layers.#.feed_forward_norm.": "encoder.layers.#.final_layer_norm.",
}

# Heads of masked prediction and contrastive learning.
TRAINING_KEYS = (
    "mask_emb", "final_proj.*", "label_embs_concat", "target_glu.*", "quantizer.*", "input_quantizer.*",
    "project_q.*", "project_inp.*",
)  # fmt: skip

TABLE = KeyTable(KEYS, TRAINING_KEYS)

# Settings with another name here.
NAMES = {
    "conv_bias": "conv_bias",
    "crop_seq_to_multiple": "frame_multiple",
    "conv_pos": "positional_kernel",
    "conv_pos_groups": "positional_groups",
    "layer_norm_first": "layer_norm_first",
    "num_buckets": "relative_buckets",
    "max_distance": "relative_max_distance",
    "dropout_input": "feature_dropout",
    "dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
}

# fairseq's defaults, where they are not those of `EncoderConfig`.
DEFAULTS: Mapping[str, Any] = {
    "extractor_mode": "default",
    "conv_feature_layers": BASE_CONV_LAYERS,
    "encoder_layers": 12,
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12,
    "dropout": 0.1,
    "attention_dropout": 0.1,
}

# Settings of which the encoder supports one value. required_seq_len_multiple is not among them: it pads with masked
# frames that no valid frame sees.
FIXED: Mapping[str, Any] = {
    "activation_fn": "gelu",
    "layer_type": "transformer",
    "pos_conv_depth": 1,
    "quantize_input": False,
    "deep_norm": False,
}

# All settings that are read.
SETTINGS = (*FIXED, *DEFAULTS, *NAMES, "_name", "arch", "relative_position_embedding")

EXTRACTORS = {"default": "group", "layer_norm": "layer"}


def matches(content: Mapping[str, Any]) -> bool:
    """Whether the content of a file is of this format."""
    return "model_weight" in content or ("model" in content and ("cfg" in content or "args" in content))


def read(content: Mapping[str, Any], path: Path, model_config: Path | None) -> SpeechEncoder:
    """The encoder in the content of a file.

    Raises:
        UserError: an unsupported model or setting, or anything wrong with the weights.
    """
    refuse_configuration(path, model_config)
    settings, normalize = _settings(content, str(path))
    if str(settings.get("_name", "")).endswith(("_ctc", "_seq2seq")) or "w2v_args" in settings:
        raise UserError(f"{path} is a fine-tuned model; only pre-trained ones are supported")
    state = content.get("model_weight", content.get("model"))
    if not isinstance(state, Mapping):
        raise UserError(f"{path}: its model is a {type(state).__name__}, not a dictionary of weights")
    settings = plain_settings(settings, SETTINGS, str(path))
    family = _family(settings, state)
    return build(parse_settings(settings, family, normalize, str(path)), state, str(path), TABLE)


def _settings(content: Mapping[str, Any], source: str) -> tuple[Mapping[str, Any], bool]:
    """The model's settings and whether waveforms are normalised; writers put them in different places."""
    if "model_weight" in content:
        model, task = content.get("model_cfg"), content.get("task_cfg")
    else:
        model = content.get("cfg")
        if model is None or (isinstance(model, Mapping) and not model):
            model = content.get("args")
        model = task = vars(model) if isinstance(model, Namespace) else model
        if isinstance(model, Mapping) and isinstance(model.get("model"), Mapping):
            model, task = model["model"], model.get("task")
    if not isinstance(model, Mapping):
        raise UserError(f"{source}: its configuration is a {type(model).__name__}, not a dictionary of settings")
    return model, isinstance(task, Mapping) and task.get("normalize") is True


def _family(settings: Mapping[str, Any], state: Mapping[Any, Any]) -> str:
    """WavLM has a table of relative positions; wav2vec 2.0 has a quantizer, or is named in the settings."""
    if settings.get("relative_position_embedding") or has_relative_positions(state):
        return "wavlm"
    named = settings.get("_name", settings.get("arch")) == "wav2vec2"
    return "wav2vec2" if named or any(str(key).startswith("quantizer.") for key in state) else "hubert"


def has_relative_positions(state: Mapping[Any, Any]) -> bool:
    """Whether the weights are a WavLM's."""
    return any(str(key).endswith("self_attn.relative_attention_bias.weight") for key in state)


def parse_settings(settings: Mapping[str, Any], family: str, normalize: bool, source: str) -> EncoderConfig:
    """fairseq's settings of a model as our configuration.

    Raises:
        UserError: an unsupported setting, or values out of range.
    """
    check_fixed(settings, FIXED, source)
    known = {**DEFAULTS, **{key: value for key, value in settings.items() if value is not None}}
    values = {ours: known[theirs] for theirs, ours in NAMES.items() if theirs in known}
    values |= equal_layers(
        known, "encoder_layers", "encoder_attention_heads", "encoder_embed_dim", "encoder_ffn_embed_dim", source
    )
    conv_layers = parse_conv_layers(known["conv_feature_layers"], source)
    values |= {
        "family": family,
        "conv_layers": conv_layers,
        "conv_norm": translated(known["extractor_mode"], EXTRACTORS, f"{source}: extractor_mode"),
        "projection": conv_layers[-1][0] != values["embed_dim"],  # fairseq has one only if the widths differ
        "normalize_waveform": normalize,
        "normalize_eps": 1e-5,  # torch's layer norm over the whole waveform
    }
    if family == "wavlm":
        values.setdefault("relative_max_distance", 1280)
    return EncoderConfig.from_dict(values, source)
