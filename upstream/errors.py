"""The one exception that stands for a mistake of the user's: command lines print it as a single line."""

import re
import reprlib
from typing import Any

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


class UserError(ValueError):
    """A wrong input (file, key, value, path), said in one sentence that names it and what is allowed.

    Names and values may come from anywhere: what would break the line, or steer a terminal, becomes a space.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(_CONTROL.sub(" ", sentence))


def shown(value: Any) -> str:
    """The beginning of a value from a file, for a sentence: short, and found without a walk through all of it.

    Lists that name each other, or one text many times, are a few bytes in a file and written out may be any size.
    """
    return f"{reprlib.repr(value):.80}"
