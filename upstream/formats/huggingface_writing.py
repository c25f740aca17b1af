"""Encoders written as Hugging Face folders, for the classes of `transformers` as they are."""

from typing import Any

from torch import Tensor, eye, zeros

from ..config import SAMPLE_RATE, EncoderConfig
from ..encoder import SpeechEncoder
from ..errors import UserError
from ..families import FAMILIES
from .huggingface import IDENTITY_PROJECTION, NORMALIZE_EPS, NORMALIZE_WAVEFORM, TABLE, names


def write(encoder: SpeechEncoder) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """config.json, preprocessor_config.json and weights with which `transformers` opens the encoder without our code.

    If the encoder has no projection, the weights contain an identity.

    Raises:
        UserError: the encoder has a structure that the classes of `transformers` lack; the message names it.
    """
    config = encoder.config
    if reasons := obstacles(config):
        raise UserError(f"the classes of transformers do not support this encoder: {' and '.join(reasons)}")
    state = TABLE.to_foreign(encoder.state_dict())
    for name, value in state.items():
        if name.endswith("gru_rel_pos_const"):
            state[name] = value.reshape(1, -1, 1, 1)
    added: dict[str, Any] = {NORMALIZE_WAVEFORM: config.normalize_waveform, NORMALIZE_EPS: config.normalize_eps}
    if not config.projection:
        added[IDENTITY_PROJECTION] = True
        state["feature_projection.projection.weight"] = eye(config.embed_dim)
        state["feature_projection.projection.bias"] = zeros(config.embed_dim)
    return {**config_values(config), **added}, preprocessor(config), state


def preprocessor(config: EncoderConfig) -> dict[str, Any]:
    """preprocessor_config.json: what `AutoFeatureExtractor` needs to prepare waveforms."""
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": SAMPLE_RATE,
        "padding_value": 0.0,
        "padding_side": "right",
        "do_normalize": config.normalize_waveform and not config.normalizes_with_other_eps,
        "return_attention_mask": True,
    }


def config_values(config: EncoderConfig) -> dict[str, Any]:
    """config.json of `transformers`, as far as its keys can describe the encoder."""
    channels, kernels, strides = (list(column) for column in zip(*config.conv_layers, strict=True))
    family = FAMILIES[config.family]
    values = {
        "architectures": [family.transformers_class],
        "model_type": config.family,
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": max(width or 0 for width in config.ffn_dims),
        "hidden_act": "gelu",
        "conv_dim": channels,
        "conv_kernel": kernels,
        "conv_stride": strides,
        "feat_extract_activation": "gelu",
        **{theirs: getattr(config, ours) for theirs, ours in names(family).items()},
        "layerdrop": 0.0,
        "mask_time_prob": 0.0,  # students are trained without masks and have no mask embedding
    }
    if family.optional_feature_norm:
        values["feat_proj_layer_norm"] = config.feature_norm
    return values


def obstacles(config: EncoderConfig) -> list[str]:
    """The structures of the encoder that the classes of `transformers` lack, as clauses."""
    every_head = tuple(range(config.num_heads))
    if config.whisper:
        return ["it is a Whisper encoder, which can be read but not written"]
    family = FAMILIES[config.family]
    lacks_norm = not config.feature_norm and not family.optional_feature_norm
    clauses = {
        "its layers have different heads": set(config.attention_heads) != {every_head},
        "its layers have different feed-forward widths": len(set(config.ffn_dims)) > 1 or not config.ffn_dims[0],
        "its heads are not embed_dim / num_heads wide": config.num_heads * config.head_dim != config.embed_dim,
        "its last convolution is scaled per channel": config.feature_scale,
        "its input is log-mel energies": config.mel_bins > 0,
        "its frames attend in chunks": config.chunk_frames > 0,
        "it drops frames beyond a multiple": config.frame_multiple != 1,
        "its layer norms count over pruned channels": bool(config.unpruned_channels),
        "it has no norm in front of the projection": lacks_norm,
        "it has group norms": family.conv_norm not in (None, config.conv_norm),
        "its layers begin with a norm": family.positional_stack and config.layer_norm_first,
        f"waveforms are normalised with epsilon {config.normalize_eps:g}": config.normalizes_with_other_eps,
    }
    return [reason for reason, holds in clauses.items() if holds]
