"""fairseq's convolution strings: those that are read, and everything else is refused."""

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
def test_python_would_give_the_same_layers(text, layers) -> None:
    assert parse_conv_layers(text, "model.yaml") == layers


@pytest.mark.parametrize(
    "value",
    [
        "",
        "__import__('os').system('true')",
        "[(512,10,5)].__class__",
        "[(512,10,5)] + [(512,3,2)] * 10000000",
        "[(512,3,2)] * " + "9" * 4000,
        "9" * 5000,
        "[(512,3,2)] * 60 + [(512,3,2)] * 5",
        "[(512,3,2)] * 8 * 9",
        "[(1,1,1)]" + "+[(1,1,1)]" * 64,
        "[(1,1,1)]" + "+[(1,1,1)]" * 400,
        "[(1,1,1)]*" + "1*" * 3000 + "1",
        "[(1,1,1)]*" + "1*" * 2000 + "1",
        "(" * 500 + "[(1,1,1)]" + ")" * 500,
        "[" * 4000,
        "+" * 4000 + "1",
        "[(512,10)]",
        "[(512,10,5,1)]",
        "[(512,-10,5)]",
        "[(512,10.0,5)]",
        "[(512,(10),(5)*2)]",
        "[(*512,10,5)]",
        "[512,10,5]",
        "(512,10,5)",
        "[(512,10,5)] [(512,3,2)]",
        "[(512,10,5)]([(512,3,2)])",
        "[(512,10,5)] * [(512,3,2)]",
        "[(512,10,5)] * 0",
        "[(512,10,5)] ** 2",
        "[(512,10,5)",
        "4",
        "2 * 2",
        "[]",
        "[(512,10,5)] if 1 else []",
        "[(٥,10,5)]",  # noqa: RUF001  # a digit that Python reads as 5
        None,
        [],
        7,
        [[1, 1, 1]] * 65,
        [[512, 10]],
        [[512, 10, "5"]],
        [[512, 10, 5.0]],
        [[True, 10, 5]],
        [512, 10, 5],
        {"a": 1},
    ],
)
def test_anything_else_is_refused(value) -> None:
    with pytest.raises(UserError, match=r"but it must be a list of 1 to 64 triples \(channels, kernel, str") as raised:
        parse_conv_layers(value, "model.yaml")
    assert str(raised.value).startswith("model.yaml: conv_feature_layers is ")
    assert len(str(raised.value)) < 250
