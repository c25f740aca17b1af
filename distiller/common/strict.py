"""Configuration sections are pydantic dataclasses; pydantic's errors become one line: key, value, what is allowed."""

import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import is_dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin

from pydantic import AfterValidator, ConfigDict, Field, Strict, ValidationError

from upstream.errors import UserError, one_of, require

T = TypeVar("T")
UNSET = "???"  # a value that the recipe's user must set

# For every section: `@dataclass(config=STRICT)`. Numbers are not converted, except that an integer may be a float.
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, coerce_numbers_to_str=True)
Text = Annotated[str, Strict(False)]  # takes a number too: a folder may be called 2026

# Allowed values, for `Annotated`. A field's description is used in errors about its range.
AT_LEAST_1 = Field(ge=1, description="an integer of at least 1")
ABOVE_0 = Field(gt=0, description="a number above 0")
AT_LEAST_0 = Field(ge=0, description="a number of at least 0")
SHARE_OF_STEPS = Field(ge=0, lt=1, description="a share of the steps, from 0 to below 1")

OUT_OF_RANGE = {
    "greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number", "too_short", "value_error",
    "none_required", "string_pattern_mismatch",
}  # fmt: skip
WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "text", type(None): "null"}


def check(holds: Callable[[Any], bool]) -> AfterValidator:
    """For `Annotated`, with a description: the value is out of range unless `holds(value)`."""

    def validate(value: Any) -> Any:
        if not holds(value):
            raise ValueError
        return value

    return AfterValidator(validate)


def typed(cls: type[T], values: Mapping[str, Any] | None, section: str = "") -> T:
    """An instance of a section's dataclass; a missing section (None) has its defaults.

    Args:
        section: the dotted key of `values`, for the errors ("" at the top).

    Raises:
        UserError: an unknown key, a value of the wrong type or out of range, or a required key that is not set.
    """
    prefix, fields = f"{section}." if section else "", cls.__pydantic_fields__  # type: ignore[attr-defined]
    keys = ", ".join(fields)
    require(values is None or isinstance(values, Mapping), section, values, f"a section with the keys {keys}")
    converted = {}
    for key, value in (values or {}).items():
        if key not in fields:
            raise unknown_key(f"{prefix}{key}", [f"{prefix}{known}" for known in fields])
        if value == UNSET:
            raise UserError(f"{prefix}{key} is not set; it must be {_described(fields[key].annotation)}")
        if is_dataclass(kind := fields[key].annotation) and not is_dataclass(value):
            value = typed(cast(type, kind), value, f"{prefix}{key}")
        converted[key] = value
    try:
        return cls(**converted)
    except ValidationError as error:
        raise UserError(_sentence(error.errors(include_url=False)[0], converted, fields, prefix)) from error


def unknown_key(key: str, allowed: Collection[str]) -> UserError:
    """The error for an unknown key, with the nearest known one."""
    return UserError(f"{key} is not a recipe key; it could be {one_of(key, allowed)}")


def _sentence(error: Any, values: Mapping[str, Any], fields: Mapping[str, Any], prefix: str) -> str:
    """One of pydantic's errors in terms that users understand."""
    if isinstance(reason := error.get("ctx", {}).get("error"), UserError):  # from a validator, complete
        return str(reason)
    key = error["loc"][0]
    field, value = fields[key], values.get(key)
    allowed = _described(field.annotation)
    if key not in values:
        return f"{prefix}{key} is not set; it must be {allowed}"
    if error["type"] in OUT_OF_RANGE and field.description:
        allowed = field.description
    elif get_origin(field.annotation) is Literal:
        allowed = one_of(value, get_args(field.annotation))
    value = float(value) if field.annotation is float and type(value) is int else value  # as it would be stored
    return f"{prefix}{key} is {value!r:.200}, but it must be {allowed}"


def _described(hint: Any) -> str:
    """A type in terms that users understand."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _described(args[0])
    if origin is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(map(str, args))
    if origin in (Union, types.UnionType):
        return " or ".join(map(_described, args))
    if origin is tuple:
        return f"a list of {len(args)} ({', '.join(map(_described, args))})"
    return f"a list with each entry {_described(args[0])}" if origin is list else WORDS[hint]
