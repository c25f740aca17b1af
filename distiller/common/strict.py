"""Plain values into a dataclass, strictly: a mistake is one sentence: dotted key, value, what is allowed.

Types are checked and converted by OmegaConf, the rest by the dataclass itself, in its `validate()`.
"""

import types
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from upstream.errors import UserError, one_of, require

T = TypeVar("T")
_REFUSED = (OmegaConfBaseException, TypeError)  # the latter where a mapping is given for a list
UNSET = "???"  # OmegaConf's mark for a value that a recipe leaves to its user


def typed(cls: type[T], values: Mapping[str, Any] | None, section: str = "") -> T:
    """An instance of the dataclass `cls`; a section that is absent (None) has its defaults.

    Args:
        section: the dotted key of `values`, for the sentences ("" at the top).

    Raises:
        UserError: an unknown key, a value of the wrong type or outside its range, or a key that must be set and is not.
    """
    prefix = f"{section}." if section else ""
    hints = {field.name: get_type_hints(cls)[field.name] for field in fields(cls)}  # type: ignore[arg-type]
    require(
        values is None or isinstance(values, Mapping), section, values, f"a section with the keys {', '.join(hints)}"
    )
    values = values or {}
    for key in values:
        if key not in hints:
            raise unknown_key(f"{prefix}{key}", [f"{prefix}{known}" for known in hints])
    for field in fields(cls):  # type: ignore[arg-type]
        required = field.default is MISSING and field.default_factory is MISSING
        if values.get(field.name, UNSET if required else None) == UNSET:
            raise UserError(f"{prefix}{field.name} is not set; it must be {_describe(hints[field.name])}")
    sections = {key: hints[key] for key in values if is_dataclass(hints[key])}
    converted = {key: typed(section, values[key], f"{prefix}{key}") for key, section in sections.items()}
    converted |= _converted(cls, {key: value for key, value in values.items() if key not in sections}, prefix)
    try:
        instance = cls(**converted)
        if callable(validate := getattr(instance, "validate", None)):
            validate()
        return instance
    except ValueError as error:
        where = "" if prefix in str(error) else f"{section}: "
        raise UserError(f"{where}{error}") from error


def unknown_key(key: str, allowed: Collection[str]) -> UserError:
    """The error for a key that there is not, with the nearest of those that there are."""
    return UserError(f"{key} is not a recipe key; it could be {one_of(key, allowed)}")


def _converted(cls: type, values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """`values` as the types of the fields of `cls`."""
    schema = OmegaConf.structured(cls)
    OmegaConf.set_readonly(schema, False)  # a frozen dataclass is filled here too

    def convert(some: Mapping[str, Any]) -> dict[str, Any]:
        merged: Any = OmegaConf.merge(schema, some)
        plain = {
            key: OmegaConf.to_object(merged[key]) if OmegaConf.is_config(merged[key]) else merged[key] for key in some
        }
        if not all(_fits(value, hints[key]) for key, value in plain.items()):
            raise ValidationError
        return plain

    hints = get_type_hints(cls)
    try:
        return convert(values)
    except _REFUSED:  # which of them it was, it does not always say
        for key, value in values.items():
            try:
                convert({key: value})
            except _REFUSED as error:
                hint = hints[key]
                allowed = one_of(value, get_args(hint)) if get_origin(hint) is Literal else _describe(hint)
                raise UserError(f"{prefix}{key} is {value!r:.200}, but it must be {allowed}") from error
        raise


def _fits(value: Any, hint: Any) -> bool:
    """Whether a converted value is what its type says, to the last entry: OmegaConf takes a list for any entry."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in args)
    if origin in (list, tuple):
        if not isinstance(value, origin):
            return False
        entries = args if origin is tuple and ... not in args else args[:1] * len(value)
        return len(value) == len(entries) and all(map(_fits, value, entries))
    if origin is dict:
        return isinstance(value, dict) and all(_fits(one, args[1]) for one in value.values())
    return value in args if origin is Literal else hint is Any or isinstance(value, hint)


def _describe(hint: Any) -> str:
    """A type in a user's words."""
    words = {
        bool: "true or false",
        int: "an integer",
        float: "a number",
        str: "text",
        type(None): "null",
        list: "a list",
    }
    if hint in words:
        return words[hint]
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin in (Union, types.UnionType):
        return " or ".join(map(_describe, args))
    if origin is tuple and ... not in args:
        return f"a list of {len(args)} ({', '.join(map(_describe, args))})"
    if origin in (list, tuple):
        return f"a list with each entry {_describe(args[0])}"
    if origin is dict:
        return f"a mapping with each value {_describe(args[1])}"
    return f"a section with the keys {', '.join(field.name for field in fields(hint))}" if is_dataclass(hint) else "set"
