"""The one exception for a user's mistake, and the words that explain it."""

import difflib
import re
import reprlib
from collections.abc import Collection
from typing import Any

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


class UserError(ValueError):
    """A wrong input (file, key, value, path): one line that names it and what is allowed.

    Names and values may come from anywhere, so whatever would break the line or control a terminal becomes a space.
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
    matches = difflib.get_close_matches(str(value).casefold(), folded, n=1, cutoff=cutoff)
    return folded[matches[0]] if matches else None


def one_of(value: object, allowed: Collection[str]) -> str:
    """The allowed words as text, and which of them was probably meant by `value`."""
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

    Written out in full, nested or aliased values of a few bytes in a file can be of any size.
    """
    return f"{reprlib.repr(value):.80}"
