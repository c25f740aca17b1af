"""The STaR section of a recipe: every mistake is one line."""

import pytest

from distiller.common.strict import typed
from distiller.objectives.config import StarConfig
from distiller.objectives.layer_map import resolve_layer_map
from distiller.objectives.registry import build
from upstream.config import EncoderConfig
from upstream.errors import UserError


def encoder_config(layers: int) -> EncoderConfig:
    return EncoderConfig(
        embed_dim=8,
        num_heads=2,
        attention_heads=((0, 1),) * layers,
        ffn_dims=(4,) * layers,
        head_dim=4,
        conv_layers=((8, 10, 5),),
        positional_kernel=4,
        positional_groups=2,
    )


def test_a_deeper_teacher_is_sub_sampled_evenly() -> None:
    assert resolve_layer_map(None, 12, 12) == list(range(1, 13))
    assert resolve_layer_map(None, 24, 12) == list(range(2, 25, 2))
    assert resolve_layer_map(None, 12, 5) == [2, 5, 7, 10, 12]
    assert resolve_layer_map([6, 6, 1], 6, 3) == [6, 6, 1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layer_wise": -1.0}, r"objective\.layer_wise is -1\.0, but it must be a number of at least 0"),
        (
            {"average_attention": float("nan")},
            r"objective\.average_attention is nan, but it must be a number",
        ),
        ({"layer_wise": 0.0, "intra_layer": 0.0}, r"are all 0; at least one"),
        (
            {"scaling": "frobenius"},
            r"objective\.scaling is 'frobenius', .* one of none, width, unit, centred",
        ),
        ({"layer_zero": "P"}, r"objective\.layer_zero is 'P', .* one of feature_projection, transformer_input"),
        ({"identity": "always"}, r"objective\.identity is 'always', but it must be one of auto, never"),
        ({"gram_precision": "bf16"}, r"objective\.gram_precision is 'bf16', but it must be one of tf32, ieee"),
        ({"layer_map": [1, 2]}, r"objective\.layer_map is \[1, 2\], but it must be a list of 3 layers of the teacher"),
        ({"layer_map": [0, 1, 2]}, r"objective\.layer_map is \[0, 1, 2\], .* layers of the teacher, from 1 to 3"),
        ({"layer_map": [1, 2, 4]}, r"objective\.layer_map is \[1, 2, 4\], .* layers of the teacher, from 1 to 3"),
        ({"name": "stra"}, r"objective\.name is 'stra', but it must be one of star, .*; did you mean star\?"),
    ],
)
def test_wrong_configurations_name_the_key_and_what_is_allowed(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(typed(StarConfig, values, "objective"), encoder_config(3), encoder_config(3))


def test_a_shallower_teacher_needs_a_map() -> None:
    with pytest.raises(UserError, match=r"objective\.layer_map is not set, but a student of 3 layers .* only 2"):
        build(StarConfig(), encoder_config(2), encoder_config(3))
