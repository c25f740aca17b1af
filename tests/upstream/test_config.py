"""The strict configuration: the values that it refuses, and the errors."""

import json
from dataclasses import fields, replace

import pytest

from upstream.config import LATER_KEYS, EncoderConfig
from upstream.errors import UserError

REQUIRED = {
    "embed_dim": 48,
    "num_heads": 4,
    "head_dim": 12,
    "attention_heads": [[0, 1, 2, 3], None, []],
    "ffn_dims": [64, None, 0],
}


def test_json_and_back_is_the_same_configuration(tiny_config) -> None:
    config = tiny_config(family="wavlm", attention_heads=((0, 2), None, ()), ffn_dims=(None, 0, 7))
    text = json.dumps(config.to_dict())
    assert EncoderConfig.from_dict(json.loads(text)) == config
    assert json.loads(text).keys() == {field.name for field in fields(EncoderConfig)} - set(LATER_KEYS)
    other = replace(config, family="data2vec-audio", positional_layers=5)
    assert EncoderConfig.from_dict(json.loads(json.dumps(other.to_dict()))) == other


def test_only_the_shape_of_the_layers_is_required() -> None:
    config = EncoderConfig.from_dict(REQUIRED)
    assert config.attention_heads == ((0, 1, 2, 3), None, ())
    assert config.num_layers == 3
    assert (config.family, config.samples_per_frame, config.relative_position) == ("hubert", 320, False)
    assert isinstance(EncoderConfig.from_dict({**REQUIRED, "hidden_dropout": 0}).hidden_dropout, float)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"embed_dims": 3}, "^student.json: key embed_dims does not exist; did you mean embed_dim\\?$"),
        ({"x": 3}, "^student.json: key x does not exist$"),
        ({"embed_dim": "48"}, "^student.json: embed_dim is '48', but it must be of type int$"),
        ({"embed_dim": True}, "embed_dim is True, but it must be of type int"),
        ({"embed_dim": 48.0}, "embed_dim is 48.0, but it must be of type int"),
        ({"conv_bias": 1}, "conv_bias is 1, but it must be of type bool"),
        ({"family": None}, "family is None, but it must be of type str"),
        ({"layer_norm_eps": "1e-5"}, "layer_norm_eps is '1e-5', but it must be of type float"),
        ({"ffn_dims": 64}, "ffn_dims is 64, but it must be a list with an entry per layer"),
        ({"layer_norm_eps": 10**400}, "^student.json: int too large to convert to float$"),
        ({"attention_heads": 3}, "attention_heads is 3, but it must be a list with an entry per layer"),
        ({"attention_heads": [[0, 1.5], [0], [0]]}, r"attention_heads\[0\] is \(0, 1.5\), but .* rising list"),
        ({"attention_heads": [[0, True], [0], [0]]}, r"attention_heads\[0\] is \(0, True\), but .* rising list"),
        ({"attention_heads": ["01", [0], [0]]}, r"attention_heads\[0\] is '01', but .* rising list"),
        ({"family": "vawlm"}, "family is 'vawlm', but it must be one of .*; did you mean wavlm"),
        ({"conv_norm": "batch"}, "conv_norm is 'batch', but it must be one of group, layer"),
        ({"embed_dim": 0}, "embed_dim is 0, but it must be between 1 and 65536"),
        ({"embed_dim": 10**9}, "embed_dim is 1000000000, but it must be between"),
        ({"conv_layers": []}, r"conv_layers is \(\), but it must be a list of at least one convolution"),
        ({"conv_layers": [[512, 10]]}, r"conv_layers\[0\] is \(512, 10\), but it must be \(channels, kernel, stride\)"),
        ({"conv_layers": [[512, 10, 5], [512, 0, 5]]}, r"conv_layers\[1\] is \(512, 0, 5\), but"),
        ({"projection": False}, r"projection is False, but it must be true, since the last convolution's 512 channels"),
        ({"positional_groups": 5}, r"positional_groups is 5, but it must be a divisor of embed_dim \(48\)"),
        ({"attention_heads": []}, r"attention_heads is \(\), but it must be a list of 1 to 1024 layers"),
        ({"ffn_dims": [64, 64]}, r"ffn_dims is \(64, 64\), but it must be a list of 3 layers"),
        (
            {"attention_heads": [[0, 4], None, []]},
            r"attention_heads\[0\] is \(0, 4\), but .* rising list of heads below 4",
        ),
        ({"attention_heads": [[1, 0], None, []]}, r"attention_heads\[0\] is \(1, 0\), but .* rising list"),
        ({"attention_heads": [None, [1, 1], []]}, r"attention_heads\[1\] is \(1, 1\), but .* rising list"),
        ({"ffn_dims": [64, -1, 0]}, r"ffn_dims\[1\] is -1, but it must be null or between 0 and"),
        ({"family": "wavlm", "head_dim": 10}, r"num_heads is 4, but it must be embed_dim / head_dim \(48 / 10\)"),
        ({"family": "wavlm", "relative_buckets": 7}, "relative_buckets is 7, but it must be even and at least 4"),
        ({"family": "wavlm", "relative_max_distance": 80}, "relative_max_distance is 80, but it must be above"),
        ({"layer_norm_eps": 0}, "layer_norm_eps is 0.0, but it must be between 0 and 1"),
        ({"hidden_dropout": 1}, "hidden_dropout is 1.0, but it must be a probability below 1"),
    ],
)
def test_a_wrong_value_is_a_one_line_error(change, sentence) -> None:
    with pytest.raises(UserError, match=sentence) as raised:
        EncoderConfig.from_dict({**REQUIRED, **change}, "student.json")
    assert "\n" not in str(raised.value)


def test_missing_keys_are_named() -> None:
    with pytest.raises(UserError, match=r"^student\.json: missing key head_dim$"):
        EncoderConfig.from_dict({key: value for key, value in REQUIRED.items() if key != "head_dim"}, "student.json")
    with pytest.raises(UserError, match="missing keys embed_dim, num_heads, attention_heads, ffn_dims, head_dim"):
        EncoderConfig.from_dict({})


def test_frames_of_integers_only(tiny_config) -> None:
    config = tiny_config(conv_layers=((8, 7, 3), (8, 4, 3), (48, 5, 2)))
    assert (config.samples_per_frame, config.min_samples) == (18, 52)
    assert [config.frame_count(samples) for samples in (51, 52, 69, 70)] == [0, 1, 1, 2]
