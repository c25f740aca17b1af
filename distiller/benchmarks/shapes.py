"""Encoders that need no download to be measured: published shapes with random weights."""

from dataclasses import replace

import torch

from distiller.students.config import NarrowConfig
from upstream.config import BASE_CONV_LAYERS, EncoderConfig
from upstream.encoder import SpeechEncoder
from upstream.errors import one_of, require

RANDOM = "random:"  # in front of a shape's name, where a checkpoint's path could stand

HUBERT_BASE = EncoderConfig(
    embed_dim=768, num_heads=12, head_dim=64, attention_heads=(tuple(range(12)),) * 12, ffn_dims=(3072,) * 12
)
SHAPES = {
    "hubert-base": HUBERT_BASE,
    "starhubert": NarrowConfig(dropout=0.0, feature_dropout=0.0).shape(HUBERT_BASE),
    # about DPHuBERT's parameters and multiply-accumulates, spread evenly: 23.5 M and a third of the teacher's
    "skill": replace(
        HUBERT_BASE,
        attention_heads=((0, 4, 8),) * 12,
        ffn_dims=(488,) * 12,
        conv_layers=tuple((384, kernel, stride) for _, kernel, stride in BASE_CONV_LAYERS),
        unpruned_channels=(512,) * 7,
        feature_scale=True,
    ),
}


def random_encoder(name: str) -> SpeechEncoder:
    """
    Raises:
        UserError: no shape of that name.
    """
    require(name in SHAPES, "the shape after random:", name, one_of(name, list(SHAPES)))
    torch.manual_seed(0)
    return SpeechEncoder(SHAPES[name]).eval()
