"""The exception for user errors, and helpers for its message."""

import difflib
import re
import reprlib
from collections.abc import Collection
from typing import Any

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


class UserError(ValueError):
    """A wrong input (file, key, value, path): one line that names it and what is allowed.

    Names and values may come from anywhere, so line breaks and control characters become spaces.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_CONTROL.sub(" ", message))


def require(holds: bool, key: str, value: object, allowed: str) -> None:
    """Raises: UserError: "KEY is VALUE, but it must be ALLOWED", unless `holds`."""
    if not holds:
        raise UserError(f"{key} is {value!r:.200}, but it must be {allowed}")


def nearest(value: object, allowed: Collection[str], cutoff: float = 0.5) -> str | None:
    """The allowed word most similar to `value`; None when none is similar."""
    folded = {word.casefold(): word for word in allowed}
    text = value if isinstance(value, str) else reprlib.repr(value)  # whose size is bounded
    matches = difflib.get_close_matches(text[:100].casefold(), folded, n=1, cutoff=cutoff)
    return folded[matches[0]] if matches else None


def one_of(value: object, allowed: Collection[str]) -> str:
    """The allowed words as text, with the one that `value` probably means."""
    if len(allowed) == 1:
        return str(next(iter(allowed)))
    meant = nearest(value, allowed)
    return f"one of {', '.join(map(str, allowed))}" + (f"; did you mean {meant}?" if meant else "")


def no_such(what: str, name: object, known: Collection[str]) -> UserError:
    """The error "WHAT does not exist; did you mean NEAREST?"."""
    meant = nearest(name, known)
    return UserError(f"{what} does not exist" + (f"; did you mean {meant}?" if meant else ""))


def shown(value: Any) -> str:
    """The beginning of a value from a file, for an error message.

    In full, a few bytes of nested or aliased values could expand to any size.
    """
    return f"{reprlib.repr(value):.80}"


def first_line(error: Exception) -> str:
    """The message of a library's exception, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
