"""Hugging Face folders of Whisper: the encoder is loaded, the decoder ignored."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import MEL_HOP, MEL_WINDOW, SAMPLE_RATE, EncoderConfig
from .files import read_json
from .keys import KeyTable
from .settings import check_fixed, count, equal_layers

TABLE = KeyTable(
    names={
        "feature_extractor.": "encoder.",
        "positional.table": "encoder.embed_positions.weight",
        "layer_norm.": "encoder.layer_norm.",
        "layers.": "encoder.layers.",
        "layers.#.attention.": "encoder.layers.#.self_attn.",
        "layers.#.attention_norm.": "encoder.layers.#.self_attn_layer_norm.",
        "layers.#.feed_forward.intermediate.": "encoder.layers.#.fc1.",
        "layers.#.feed_forward.output.": "encoder.layers.#.fc2.",
        "layers.#.feed_forward_norm.": "encoder.layers.#.final_layer_norm.",
    },
    ignored=("decoder.*", "proj_out.*", "projector.*", "classifier.*", "layer_weights"),
    prefixes=("model.",),
)
DEFAULTS: Mapping[str, Any] = {  # of `transformers`
    "num_mel_bins": 80,
    "encoder_layers": 4,
    "encoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "d_model": 384,
    "max_source_positions": 1500,
}
FIXED: Mapping[str, Any] = {"activation_function": "gelu"}

# A key of ours in config.json: false masks the padding, where Whisper as published attends to it
ATTENDS_TO_PADDING = "attends_to_padding"


def parse_config(values: Mapping[str, Any], source: str) -> EncoderConfig:
    """A config.json of Whisper as ours.

    Raises:
        UserError: an unsupported setting, or values out of range.
    """
    check_fixed(values, FIXED, source)
    known = {**DEFAULTS, **values}
    width = count(known["d_model"], f"{source}: d_model", most=2**16)
    shape = equal_layers(known, "encoder_layers", "encoder_attention_heads", "d_model", "encoder_ffn_dim", source)
    parsed = {
        "family": "whisper",
        "conv_layers": [[width, 3, 1], [width, 3, 2]],
        "conv_bias": True,
        "feature_norm": False,
        "projection": False,
        "layer_norm_first": True,
        "mel_bins": known["num_mel_bins"],
        "max_frames": known["max_source_positions"],
        "attends_to_padding": values.get(ATTENDS_TO_PADDING, True),
        "hidden_dropout": known.get("dropout", 0.0),
        "attention_dropout": known.get("attention_dropout", 0.0),
        "activation_dropout": known.get("activation_dropout", 0.0),
    }
    return EncoderConfig.from_dict(parsed | shape, source)


def check_preprocessor(path: Path, config: EncoderConfig) -> None:
    """Check that the folder's feature extractor matches the encoder's; without the file, assume that it does.

    Raises:
        UserError: another setting, or a spectrogram that the encoder does not take.
    """
    if not path.exists():
        return
    values = read_json(path)
    seconds = config.max_samples / SAMPLE_RATE
    only = {
        "feature_size": config.mel_bins,
        "sampling_rate": SAMPLE_RATE,
        "hop_length": MEL_HOP,
        "n_fft": MEL_WINDOW,
        "chunk_length": int(seconds) if seconds == int(seconds) else seconds,
        "padding_value": 0.0,
        "dither": 0.0,
        "do_normalize": False,
    }
    check_fixed(values, only, str(path))
