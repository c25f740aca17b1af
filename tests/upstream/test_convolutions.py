"""The grammar of fairseq's convolution strings: what it gives and what it refuses."""

import pytest

from upstream.errors import UserError
from upstream.formats.convolutions import parse_conv_layers

A, B, C = (512, 10, 5), (512, 3, 2), (512, 2, 2)


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] + [(512,2,2)]", [A, *[B] * 4, C, C]),
        ("[(512, 10, 5)]+[(512,3,2)]*4+[(512,2,2)]*2", [A, *[B] * 4, C, C]),
        (
            "[(16,10,5)]+[(24,1,1)]+[(24,3,2)]*4+[(48,1,1)]+[(48,2,2)]*2",
            [(16, 10, 5), (24, 1, 1), *[(24, 3, 2)] * 4, (48, 1, 1), *[(48, 2, 2)] * 2],
        ),
        ("[(512,10,5),(512,3,2)]", [A, B]),
        ("[(512,10,5), (512,3,2),]", [A, B]),
        ("2 * [(512,3,2)]", [B, B]),
        ("([(512,3,2)] + [(512,2,2)]) * 2", [B, C, B, C]),
        ("[(512,3,2)] * 2 * 2", [B] * 4),
        ("  [ ( 512 , 3 , 2 ) ]\n", [B]),
        ([[512, 10, 5], (512, 3, 2)], [A, B]),
    ],
)
def test_what_the_grammar_gives_is_what_python_would(text, layers) -> None:
    assert parse_conv_layers(text, "model.yaml") == layers


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", r"'\[' is expected where the end stands"),
        ("__import__('os').system('true')", "'__import__' is not part of one"),
        ("[(512,10,5)].__class__", r"'\.__class__' is not part of one"),
        ("[(512,10,5)] + [(512,3,2)] * 10000000", "'10000000' is not part of one"),
        ("[(512,3,2)] * 999999", "more than 64 convolutions"),
        ("[(512,3,2)] * 60 + [(512,3,2)] * 5", "more than 64 convolutions"),
        ("[(1,1,1)]" + "+[(1,1,1)]" * 64, "more than 64 convolutions"),
        ("[(1,1,1)]*" + "1*" * 3000 + "1", "it is too long"),
        ("(" * 500 + "[(1,1,1)]", r"'\[' is expected where '\(' stands"),
        ("[(512,10)]", r"',' is expected where '\)' stands"),
        ("[(512,10,5,1)]", r"'\)' is expected where ',' stands"),
        ("[(512,-10,5)]", "'-10,5\\)\\]' is not part of one"),
        ("[(512,10.0,5)]", "is not part of one"),
        ("[512,10,5]", r"'\(' is expected where '512' stands"),
        ("[(512,10,5)] [(512,3,2)]", r"'\[' is left over"),
        ("[(512,10,5)] * [(512,3,2)]", r"a number is expected where '\[' stands"),
        ("4", r"'\*' is expected where the end stands"),
        ("[]", r"'\(' is expected where '\]' stands"),
        ("[(512,10,5)] if 1 else []", "'if 1 else' is not part of one"),
    ],
)
def test_what_is_not_of_the_grammar_is_refused(text, why) -> None:
    with pytest.raises(UserError, match=why) as raised:
        parse_conv_layers(text, "model.yaml")
    assert str(raised.value).startswith("model.yaml: conv_feature_layers is ")
    assert len(str(raised.value)) < 250


@pytest.mark.parametrize(
    "value", [None, [], 7, [[1, 1, 1]] * 65, [[512, 10]], [[512, 10, "5"]], [[512, 10, 5.0]], [512, 10, 5], {"a": 1}]
)
def test_what_is_no_list_of_triples_is_refused(value) -> None:
    with pytest.raises(UserError, match=r"not a list of \(channels, kernel, stride\)"):
        parse_conv_layers(value, "model.yaml")
