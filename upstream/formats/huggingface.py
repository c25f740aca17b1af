"""Hugging Face folders of encoders with a convolutional front end: key tables and reading; `huggingface_writing` writes
them, `whisper` reads Whisper's.

Base models have a group norm after the first convolution and post-LN layers, Large models (XLS-R included) layer norms
and pre-LN layers, DistilHuBERT has two layers and no norm in front of the projection.
"""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import equal, eye

from ..config import FEATURE_EXTRACTOR_EPS, EncoderConfig
from ..encoder import SpeechEncoder
from ..errors import UserError, one_of, shown
from ..families import FAMILIES, Family
from . import whisper
from .files import read_json, read_safetensors, read_torch
from .keys import KeyTable, build
from .settings import check_fixed, equal_layers

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

TABLE = KeyTable(
    names={
        "feature_": "feature_",
        "positional.": "encoder.pos_conv_embed.conv.",
        "positional.layers.#.": "encoder.pos_conv_embed.layers.#.conv.",  # data2vec's
        "positional.weight_g": "encoder.pos_conv_embed.conv.parametrizations.weight.original0",
        "positional.weight_v": "encoder.pos_conv_embed.conv.parametrizations.weight.original1",
        "relative_position.": "encoder.layers.0.attention.rel_attn_embed.",
        "layer": "encoder.layer",  # the norm and the layers
        "layers.#.attention.gate.linear.": "encoder.layers.#.attention.gru_rel_pos_linear.",
        "layers.#.attention.gate.constant": "encoder.layers.#.attention.gru_rel_pos_const",
        "layers.#.attention_norm.": "encoder.layers.#.layer_norm.",
        "layers.#.feed_forward.intermediate.": "encoder.layers.#.feed_forward.intermediate_dense.",
        "layers.#.feed_forward.output.": "encoder.layers.#.feed_forward.output_dense.",
        "layers.#.feed_forward_norm.": "encoder.layers.#.final_layer_norm.",
    },
    ignored=(
        "masked_spec_embed",  # replaces masked frames in pre-training
        "lm_head.*",  # ForCTC
        "projector.*",  # ForSequenceClassification, ForXVector
        "classifier.*",
        "layer_weights",
        "feature_extractor.weight",  # a layer of ForXVector
        "feature_extractor.bias",
        "tdnn.*",
        "objective.*",
        "quantizer.*",  # ForPreTraining
        "project_hid.*",
        "project_q.*",
        "final_proj.*",  # HuBERT's and WavLM's masked prediction
        "label_embs_concat",
        "label_embeddings_concat",  # UniSpeech-SAT's
        "speaker_proj.*",
        "layer_norm_for_extract.*",
    ),
    prefixes=tuple(family.prefix for family in FAMILIES.values()),
)

# Settings with another name here.
NAMES = {
    "conv_bias": "conv_bias",
    "feat_extract_norm": "conv_norm",
    "do_stable_layer_norm": "layer_norm_first",
    "num_conv_pos_embeddings": "positional_kernel",
    "num_conv_pos_embedding_groups": "positional_groups",
    "layer_norm_eps": "layer_norm_eps",
    "feat_proj_dropout": "feature_dropout",
    "hidden_dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
}
STACK_NAMES = {  # data2vec's, which has no choice of norms, whatever its config.json says
    theirs: ours for theirs, ours in NAMES.items() if ours not in ("conv_norm", "layer_norm_first", "positional_kernel")
} | {"num_conv_pos_embeddings": "positional_layers", "conv_pos_kernel_size": "positional_kernel"}
POSITION_NAMES = {"num_buckets": "relative_buckets", "max_bucket_distance": "relative_max_distance"}  # WavLM's

# The defaults of `transformers`, where they are not those of `EncoderConfig`; the same in all families.
DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "conv_dim": (512,) * 7,
    "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
    "conv_stride": (5, 2, 2, 2, 2, 2, 2),
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.1,
}
STACK_DEFAULTS: Mapping[str, Any] = {"num_conv_pos_embeddings": 5, "conv_pos_kernel_size": 19}

# Settings of which the encoder supports one value.
FIXED: Mapping[str, Any] = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "conv_pos_batch_norm": False,
    "add_adapter": False,
    "adapter_attn_dim": None,
}

# A folder with our own modelling file, for structures that the classes of `transformers` lack.
OWN_MODEL_TYPE = "distilled_speech_encoder"
OWN_TABLE = KeyTable(
    names={
        "": "encoder.",
        "positional.weight_g": "encoder.positional.magnitude",  # `transformers` renames anything called weight_g
        "positional.weight_v": "encoder.positional.direction",
    },
    ignored=TABLE.ignored,
    prefixes=("speech_encoder.", *TABLE.prefixes),
)

# Keys that we add to config.json, since the format has none for them.
IDENTITY_PROJECTION = "identity_projection"
NORMALIZE_WAVEFORM = "normalize_waveform"
NORMALIZE_EPS = "normalize_eps"


def matches(values: Mapping[str, Any]) -> bool:
    """Whether a config.json with these values was written by `transformers`."""
    return "model_type" in values


def read(folder: Path, values: Mapping[str, Any]) -> SpeechEncoder:
    """The encoder in a folder whose config.json contains `values`.

    Raises:
        UserError: an unsupported model or setting, or anything wrong with the weights.
    """
    source = folder / "config.json"
    if values["model_type"] == OWN_MODEL_TYPE:
        config = EncoderConfig.from_dict(values.get("encoder_config") or {}, str(source))
        path, state = _read_weights(folder)
        return build(config, state, str(path), OWN_TABLE)
    config = parse_config(values, False, str(source))
    path, state = _read_weights(folder)
    if config.whisper:
        whisper.check_preprocessor(folder / "preprocessor_config.json", config)
        return build(config, state, str(path), whisper.TABLE)
    config = replace(config, normalize_waveform=_normalizes(folder, values, config))
    encoder = build(config, state, str(path), TABLE)
    return _without_identity(encoder, str(path)) if values.get(IDENTITY_PROJECTION) else encoder


def parse_config(values: Mapping[str, Any], normalize_waveform: bool, source: str) -> EncoderConfig:
    """A config.json of `transformers` as ours.

    Raises:
        UserError: an unsupported model or setting, or values out of range.
    """
    family = values.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise UserError(f"{source}: model_type is {shown(family)}, but it must be {one_of(family, FAMILIES)}")
    if FAMILIES[family].whisper:
        return whisper.parse_config(values, source)
    check_fixed(values, FIXED, source)
    known = {**DEFAULTS, **(STACK_DEFAULTS if FAMILIES[family].positional_stack else {}), **values}
    parsed = {ours: known[theirs] for theirs, ours in names(FAMILIES[family]).items() if theirs in known} | {
        "family": family,
        "conv_layers": _conv_layers(known, source),
        "normalize_waveform": normalize_waveform,
        "normalize_eps": values.get(NORMALIZE_EPS, FEATURE_EXTRACTOR_EPS),
    }
    if (norm := FAMILIES[family].conv_norm) is not None:
        parsed["conv_norm"] = norm
    if FAMILIES[family].optional_feature_norm:
        parsed["feature_norm"] = values.get("feat_proj_layer_norm", True)
    shape = equal_layers(known, "num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size", source)
    return EncoderConfig.from_dict(parsed | shape, source)


def names(family: Family) -> dict[str, str]:
    """The settings of a family that have another name here."""
    return STACK_NAMES if family.positional_stack else NAMES | (POSITION_NAMES if family.relative_position else {})


def _conv_layers(known: Mapping[str, Any], source: str) -> list[list[int]]:
    columns = {key: known[key] for key in ("conv_dim", "conv_kernel", "conv_stride")}
    for key, column in columns.items():
        if not isinstance(column, (list, tuple)) or len(column) != len(columns["conv_dim"]):
            raise UserError(f"{source}: {key} is {shown(column)}, but it must be a list as long as conv_dim")
    return [list(layer) for layer in zip(*columns.values(), strict=True)]


def _normalizes(folder: Path, values: Mapping[str, Any], config: EncoderConfig) -> bool:
    """Whether waveforms are normalised: if preprocessor_config.json says so and the extractor has layer norms.

    Base checkpoints were trained without normalisation, whatever their file says.
    """
    if NORMALIZE_WAVEFORM in values:
        return values[NORMALIZE_WAVEFORM] is True
    path = folder / "preprocessor_config.json"
    if not path.exists():
        warnings.warn(f"{path} is missing: waveforms will not be normalised", stacklevel=2)
        return False
    return read_json(path).get("do_normalize") is True and config.conv_norm == "layer"


def _read_weights(folder: Path) -> tuple[Path, dict[str, Any]]:
    path = next((folder / name for name in WEIGHTS if (folder / name).exists()), None)
    if path is None:
        raise UserError(f"{folder} contains no weights; they could be {', '.join(WEIGHTS)}")
    state: dict[str, Any] = {}
    for name in shards(path) if path.name.endswith(".index.json") else [path.name]:
        read_shard = read_safetensors if name.endswith(".safetensors") else read_torch
        state.update(read_shard(folder / name))
    return path, state


def shards(index: Path) -> list[str]:
    """The files named by an index; they must lie beside it.

    Raises:
        UserError: not an index, or a name that is a path.
    """
    by_key = read_json(index).get("weight_map")
    if not isinstance(by_key, dict) or not by_key:
        raise UserError(f"{index}: weight_map is {shown(by_key)}, but it must name the file of each key")
    names = sorted({str(name) for name in by_key.values()})
    for name in names:
        if Path(name).name != name or not name.endswith((".safetensors", ".bin")):
            raise UserError(f"{index} is refused: weight_map names '{name:.80}', not a weights file of its folder")
    return names


def _without_identity(encoder: SpeechEncoder, source: str) -> SpeechEncoder:
    """The encoder without the projection that `huggingface_writing` gave it, unless fine-tuning has changed that."""
    projection = encoder.feature_projection.projection
    assert projection is not None
    if not equal(projection.weight, eye(len(projection.weight))) or projection.bias.any():
        return encoder
    state = {name: value for name, value in encoder.state_dict().items() if ".projection." not in name}
    return build(replace(encoder.config, projection=False), state, source)
