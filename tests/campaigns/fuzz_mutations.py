"""Strategies that all targets share: bytes edited in place, nested values with something wrong in them."""

import copy
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from fuzz_worker import Broken
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

Edit = tuple[str, int, Any]  # what is done, where (modulo the length), with what

NUMBERS = [0, 1, -1, 2, 3, 7, 16, 255, 400, 65_535, 65_536, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, 10**30, -(10**30)]
FLOATS = [0.5, -0.5, 1e-9, 1e-300, 1e300, float("inf"), float("-inf"), float("nan")]
WORDS = [
    "", " ", "null", "~", "true", "none", "???", "1e3", "0x10", "1,2", "[1,2]", "{}", "a.b", "-", "\n", "two\nlines",
    "\x00", "\x1b[31m", "é", "\ud800", "${a}", "${oc.env:HOME}", "${", "embedded", "star", "name", "\N{PILE OF POO}",
]  # fmt: skip

# No slash, tilde or dot: text may become a path, which must not lead out of the example's folder.
LETTERS = (
    "".join(map(chr, range(32, 127))).translate(dict.fromkeys(map(ord, "/~.")))
    + "\t\n\r\x00\x1b\x85\xa0éß\u0301\u2028\ud800一😀"
)
texts = st.sampled_from(WORDS) | st.text(LETTERS, max_size=12)
leaves = st.none() | st.booleans() | st.sampled_from(NUMBERS) | st.sampled_from(FLOATS) | texts
junk: SearchStrategy[Any] = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)

places = st.integers(0, 63) | st.integers(0, 511) | st.integers(0, 2**17)
_packed = [struct.pack(form, value) for form in ("<I", ">I") for value in (0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1)]
payloads = st.binary(min_size=1, max_size=8) | st.sampled_from(_packed)
edits: SearchStrategy[list[Edit]] = st.lists(
    st.tuples(st.just("set"), places, payloads)
    | st.tuples(st.just("flip"), places, st.integers(1, 255))
    | st.tuples(st.just("insert"), places, payloads)
    | st.tuples(st.just("delete"), places, st.integers(1, 4096))
    | st.tuples(st.just("copy"), places, places)
    | st.tuples(st.just("end"), places, st.none()),
    min_size=1,
    max_size=5,
)


def apply(content: bytes, changes: Sequence[Edit]) -> bytes:
    """`content` after a list of edits."""
    for what, place, argument in changes:
        at = place % (len(content) + 1)
        if what == "set":
            content = content[:at] + argument + content[at + len(argument) :]
        elif what == "flip" and at < len(content):
            content = content[:at] + bytes([content[at] ^ argument]) + content[at + 1 :]
        elif what == "insert":
            content = content[:at] + argument + content[at:]
        elif what == "delete":
            content = content[:at] + content[at + argument :]
        elif what == "copy":
            source = argument % (len(content) + 1)
            content = content[:at] + content[source : source + 256] + content[at + 256 :]
        elif what == "end":
            content = content[:at]
    return content


def paths(value: Any) -> list[tuple[Any, ...]]:
    """The place of everything within nested mappings and lists, the value itself (()) first."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    return [(), *((key, *rest) for key, inner in items for rest in paths(inner))]


@st.composite
def spoiled(draw: st.DrawFn, value: Any, values: SearchStrategy[Any] = junk, most: int = 3) -> Any:
    """A nested value with up to `most` things in it replaced, removed, renamed, moved or wrapped."""
    result = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, most))):
        *way, last = draw(st.sampled_from(paths(result)[1:] or [("",)]))
        parent = result
        for key in way:
            parent = parent[key]
        action = draw(st.sampled_from(["replace"] * 4 + ["remove", "rename", "wrap", "move"]))
        if action == "remove" and not isinstance(parent, str):
            del parent[last]
        elif action == "rename" and isinstance(parent, dict):
            parent[draw(misspelt(str(last)) | texts)] = parent.pop(last)
        elif action == "wrap":
            parent[last] = [parent[last]] if draw(st.booleans()) else {"name": parent[last]}
        elif action == "move":
            moved = result
            for key in draw(st.sampled_from(paths(result))):
                moved = moved[key]
            parent[last] = copy.deepcopy(moved)
        else:
            parent[last] = draw(values)
        if not isinstance(result, (dict, list)) or not result:
            break
    return result


def changed(before: Any, after: Any, place: str = "") -> list[str]:
    """What `spoiled` did, a line each."""
    if type(before) is not type(after) or not isinstance(before, (dict, list)):
        same = repr(before) == repr(after)
        return [] if same else [f"{place or 'all'} = {after!r:.300}"]
    if isinstance(before, list):
        before, after = dict(enumerate(before)), dict(enumerate(after))
    gone = [f"{place}{key} removed" for key in before if key not in after]
    new = [f"{place}{key} = {value!r:.300}" for key, value in after.items() if key not in before]
    inner = (changed(value, after[key], f"{place}{key}.") for key, value in before.items() if key in after)
    return [*gone, *new, *(line for lines in inner for line in lines)]


@st.composite
def misspelt(draw: st.DrawFn, word: str) -> str:
    at = draw(st.integers(0, max(len(word) - 1, 0)))
    return draw(st.sampled_from([word[:at] + word[at + 1 :], word[:at] + "x" + word[at:], word.upper(), word + "s"]))


def one_sentence(error: Exception, most: int = 3000) -> None:
    """What a user reads fits on a line."""
    text = str(error)
    if not text.strip() or any(mark in text for mark in "\n\r"):
        raise Broken("UserError that is not one line")
    if len(text) > most:
        raise Broken("UserError longer than a user reads")
