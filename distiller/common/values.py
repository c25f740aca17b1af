"""Nested values: dotted keys, differences, digests."""

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys and their values; a list, or an empty section, is a value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return flat


def difference(a: Mapping[str, Any], b: Mapping[str, Any], ignore: Collection[str] = ()) -> str | None:
    """The first dotted key whose values differ, and both values: `trainer.steps (10 against 20)`; None if none does."""
    sides = flatten(a), flatten(b)
    for key in sides[0] | sides[1]:
        values = [repr(side[key]) if key in side else "not set" for side in sides]
        if key not in ignore and values[0] != values[1]:
            return f"{key} ({' against '.join(values)})"
    return None


def digest(value: Any) -> str:
    """SHA-256 of a value as JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
