"""Settings of other formats: checked before they are used, since a file may contain any value."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from ..errors import UserError, one_of, shown

MAX_ENTRIES = 2**16  # of one setting, nested lists included


def plain_settings(values: Mapping[Any, Any], keys: Iterable[str], source: str) -> dict[str, Any]:
    """The values of those `keys` that a configuration has; a pickle may contain anything under them.

    Raises:
        UserError: a value that is not a number, text, None or a list of these, or a list that is too large.
    """
    plain = {key: values[key] for key in keys if key in values}
    for key, value in plain.items():
        checks = list(islice(_checks(value), MAX_ENTRIES + 1))  # an aliased list counts each time it appears
        if len(checks) > MAX_ENTRIES or not all(checks):
            kind = type(value).__name__
            raise UserError(f"{source}: {key} is a {kind}, but it must be a number, a text or a short list of them")
    return plain


def _checks(value: Any, depth: int = 3) -> Iterator[bool]:
    """For a value and for every entry of its lists, whether it is plain."""
    if isinstance(value, (list, tuple)):
        yield depth > 0
        for entry in value if depth > 0 else ():
            yield from _checks(entry, depth - 1)
    else:
        yield value is None or isinstance(value, (bool, int, float, str))


def check_fixed(values: Mapping[str, Any], fixed: Mapping[str, Any], source: str) -> None:
    """Raises: UserError: a setting that has another value than the only one that the encoder supports."""
    for key, only in fixed.items():
        if key in values and values[key] != only:
            raise UserError(f"{source}: {key} is {shown(values[key])}, but it must be {only!r}")


def translated(value: Any, words: Mapping[str, str], key: str) -> str:
    """Our word for one of a format's.

    Raises:
        UserError: `value` is not among them.
    """
    if not isinstance(value, str) or value not in words:
        raise UserError(f"{key} is {shown(value)}, but it must be {one_of(value, words)}")
    return words[value]


def count(value: Any, key: str, most: int = 1024, least: int = 1) -> int:
    """`value`, a number of layers, heads or channels; checked before lists of that length are made.

    Raises:
        UserError: not a whole number from `least` to `most`.
    """
    if type(value) is not int or not least <= value <= most:
        raise UserError(f"{key} is {shown(value)}, but it must be between {least} and {most}")
    return value


def equal_layers(values: Mapping[str, Any], layers: str, heads: str, width: str, ffn: str, source: str) -> dict:
    """The shape of a Transformer with equal layers, from settings with these keys.

    Raises:
        UserError: a value out of range, or heads that do not divide the width.
    """
    depth, number = (count(values[key], f"{source}: {key}") for key in (layers, heads))
    channels = count(values[width], f"{source}: {width}", most=2**16)
    if channels % number:
        raise UserError(f"{source}: {heads} is {number}, but it must be a divisor of {width} ({channels})")
    return {
        "embed_dim": channels,
        "num_heads": number,
        "head_dim": channels // number,
        "attention_heads": [list(range(number))] * depth,
        "ffn_dims": [values[ffn]] * depth,
    }
