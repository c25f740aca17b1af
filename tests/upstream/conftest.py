"""Small encoders, small `transformers` folders and a padded batch that the tests of upstream/ share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder
from upstream.families import FAMILIES

LENGTHS = (16000, 11231, 7040)


@pytest.fixture
def waveforms() -> Tensor:
    """(3, 16000), zero-padded after `lengths`."""
    values = torch.randn(3, max(LENGTHS), generator=torch.Generator().manual_seed(5))
    return values * (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None])


@pytest.fixture
def lengths() -> Tensor:
    return torch.tensor(LENGTHS)


@pytest.fixture
def tiny_config() -> Callable[..., EncoderConfig]:
    """A configuration of three layers, changed where the test says."""

    def make(**changes: Any) -> EncoderConfig:
        values: dict[str, Any] = {
            "embed_dim": 48,
            "num_heads": 4,
            "head_dim": 12,
            "attention_heads": ((0, 1, 2, 3),) * 3,
            "ffn_dims": (64,) * 3,
            "conv_layers": ((16, 10, 5), (24, 1, 1), *((24, 3, 2),) * 4, (40, 2, 2), (40, 2, 2)),
            "positional_kernel": 16,
            "positional_groups": 4,
        }
        if changes.get("family") == "wavlm":
            values |= {"relative_buckets": 32, "relative_max_distance": 80}
        return EncoderConfig(**{**values, **changes})

    return make


@pytest.fixture
def tiny_encoder(tiny_config) -> Callable[..., SpeechEncoder]:
    """An encoder of `tiny_config` whose every parameter is random, biases and norms included."""

    def make(**changes: Any) -> SpeechEncoder:
        torch.manual_seed(3)
        encoder = SpeechEncoder(tiny_config(**changes)).eval()
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return encoder

    return make


@pytest.fixture
def huggingface_folder(tmp_path) -> Callable[..., tuple[Any, Path]]:
    """A tiny random model of `transformers` and the folder it was saved to."""
    import transformers

    def make(family: str, large: bool, head: str = "Model", normalize: bool | None = True, **changes: Any):
        name = FAMILIES[family].transformers_class.removesuffix("Model")
        values = {
            "hidden_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "conv_dim": (24,) * 7,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
            "attn_implementation": "eager",  # the only one that gives attention maps
        }
        if FAMILIES[family].relative_position:
            values |= {"num_buckets": 32, "max_bucket_distance": 80}
            del values["attn_implementation"]
        if FAMILIES[family].positional_stack:
            values |= {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 8 if large else 7}
        if large:
            values |= {"conv_bias": True}
        if large and FAMILIES[family].conv_norm is None:
            values |= {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
        torch.manual_seed(7)
        config = getattr(transformers, f"{name}Config")(**{**values, **changes})
        model = getattr(transformers, f"{name}{head}")(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        folder = tmp_path / f"{family}-{head}-{'large' if large else 'base'}"
        model.save_pretrained(folder)
        if normalize is not None:
            transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize).save_pretrained(folder)
        return model, folder

    return make
