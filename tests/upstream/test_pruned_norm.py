"""Layer norms that still count pruned channels: equal to the full norm over channels that are zero."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError
from upstream.extractor import FeatureProjection, PrunedLayerNorm

CONFIG = EncoderConfig(
    embed_dim=8,
    num_heads=2,
    head_dim=4,
    attention_heads=((0, 1),),
    ffn_dims=(6,),
    conv_layers=((4, 10, 5), (6, 8, 4)),
    positional_kernel=4,
    positional_groups=2,
)
KEPT = [0, 2, 3, 5]


def test_equals_the_norm_over_zeroed_channels():
    torch.manual_seed(0)
    features = torch.randn(3, 7, 6) + 2.0
    features[..., [1, 4]] = 0
    full, pruned = nn.LayerNorm(6), PrunedLayerNorm(4, width=6)
    nn.init.normal_(full.weight), nn.init.normal_(full.bias)
    pruned.load_state_dict({key: value[KEPT] for key, value in full.state_dict().items()})
    normed, zero_level = pruned.with_zero_level(features[..., KEPT])
    torch.testing.assert_close(normed, full(features)[..., KEPT], atol=1e-6, rtol=0)
    expected = zero_level * full.weight[[1, 4]] + full.bias[[1, 4]]
    torch.testing.assert_close(expected, full(features)[..., [1, 4]], atol=1e-6, rtol=0)


def test_projection_of_what_is_left_equals_the_full_projection():
    torch.manual_seed(0)
    full = FeatureProjection(CONFIG)
    for parameter in full.parameters():
        nn.init.normal_(parameter)
    layers = (CONFIG.conv_layers[0], (len(KEPT), 8, 4))
    cut = FeatureProjection(replace(CONFIG, conv_layers=layers, unpruned_channels=(4, 6)))
    weight, gamma, beta = full.projection.weight.data, full.layer_norm.weight.data, full.layer_norm.bias.data
    cut.load_state_dict(
        {
            "layer_norm.weight": gamma[KEPT],
            "layer_norm.bias": beta[KEPT],
            "projection.weight": weight[:, KEPT],
            "projection.bias": full.projection.bias.data + weight[:, [1, 4]] @ beta[[1, 4]],
            "pruned_column": weight[:, [1, 4]] @ gamma[[1, 4]],
        }
    )
    features = torch.randn(3, 7, 6)
    features[..., [1, 4]] = 0
    torch.testing.assert_close(cut(features[..., KEPT]), full(features), atol=1e-5, rtol=0)


def test_nothing_pruned_means_nothing_stored():
    plain, counted = SpeechEncoder(CONFIG), SpeechEncoder(replace(CONFIG, unpruned_channels=(4, 6)))
    assert plain.state_dict().keys() == counted.state_dict().keys()
    layer_type = SpeechEncoder(replace(CONFIG, conv_norm="layer", unpruned_channels=(9, 6)))
    widths = [getattr(layer.layer_norm, "width", None) for layer in layer_type.feature_extractor.conv_layers]
    assert widths == [9, None]
    assert "feature_projection.pruned_column" not in layer_type.state_dict()


def test_survives_json():
    config = replace(CONFIG, unpruned_channels=(5, 7))
    assert EncoderConfig.from_dict(config.to_dict()) == config
    assert EncoderConfig.from_dict({**config.to_dict(), "unpruned_channels": [5, 7]}) == config


@pytest.mark.parametrize("channels", [(4,), (3, 6), (4, 6, 6)])
def test_impossible_counts_are_refused(channels):
    with pytest.raises(UserError, match=r"unpruned_channels is .*a list of channel counts, none below"):
        replace(CONFIG, unpruned_channels=channels)


def test_without_projection_the_last_convolution_keeps_its_channels():
    with pytest.raises(UserError, match=r"unpruned_channels .*a list that ends in 8 when projection is false"):
        replace(CONFIG, conv_layers=((4, 10, 5), (8, 8, 4)), projection=False, unpruned_channels=(4, 9))
