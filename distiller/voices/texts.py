"""Texts in many languages: names from the Unicode CLDR, numbers, dates, letters, and pseudo-words like the names.

CLDR (in the package `babel`) has the names of countries, languages, scripts, currencies, units, months and days in
every language, under a licence without conditions on derived works. Numbers are written in digits, which the
synthesiser reads out in the language it speaks.
"""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import groupby

import numpy as np

from upstream.errors import UserError

SCRIPTS = {"ja": "KATAKANA"}  # where espeak-ng reads another script than the most common one of the names
INSIDE = "'\u2019\u200c\u200d"  # apostrophes and joiners, which belong to words
LONGEST_WORD = 14  # letters of a pseudo-word


@dataclass(frozen=True)
class Vocabulary:
    """A language's names in its own script, its months, its letters, and which letters follow which pairs."""

    names: tuple[str, ...]
    months: tuple[str, ...]
    letters: tuple[str, ...]
    following: Mapping[str, str]  # two letters (^ before a word) to all letters seen next ($ at its end)


@cache
def vocabulary(language: str) -> Vocabulary:
    """The vocabulary of a language.

    Raises:
        UserError: the package babel is missing.
    """
    try:
        from babel import Locale
    except ImportError:
        raise UserError(
            "speech of many languages needs the package babel, which is not installed: `uv pip install babel`"
        ) from None
    locale = Locale.parse(language)
    wide = locale.months["format"]["wide"].values()
    sources = (locale.territories, locale.languages, locale.scripts, locale.currencies, locale.days["format"]["wide"])
    raw = [name for source in sources for name in source.values()]
    raw += [*wide, *(unit["long"] for unit in locale.unit_display_names.values() if "long" in unit)]
    counts = Counter(script for name in raw for script in map(_script, name) if script)
    script = SCRIPTS.get(language) or counts.most_common(1)[0][0]
    names = tuple(dict.fromkeys(name for text in raw if len(name := _clean(text, script)) > 1))
    months = tuple(name for text in wide if (name := _clean(text, script))) or names
    following: dict[str, str] = defaultdict(str)
    words = sorted({word for name in names for word in name.lower().split() if len(word) > 2})
    for word in words:
        padded = f"^^{word}$"
        for index, letter in enumerate(padded[2:]):
            following[padded[index : index + 2]] += letter
    letters = tuple(sorted({letter for word in words for letter in word if letter.isalpha()}))
    return Vocabulary(names, months, letters, dict(following))


@cache
def _script(letter: str) -> str:
    """The script of a letter, as the first word of its Unicode name; empty if it is not a letter."""
    return unicodedata.name(letter, "").split(" ")[0].split("-")[0] if letter.isalpha() else ""


def _clean(text: str, script: str) -> str:
    """The words of a name in this script, without parentheses, digits and the like."""

    def belongs(letter: str) -> bool:
        return _script(letter) == script or unicodedata.category(letter) in ("Mn", "Mc") or letter in INSIDE

    words = ("".join(run) for inside, run in groupby(unicodedata.normalize("NFC", text), belongs) if inside)
    return " ".join(word for word in words if word[0].isalpha())


def pseudo_word(random: np.random.Generator, words: Vocabulary) -> str:
    """A word that looks like the language: each letter is drawn from those that follow the previous two."""
    word = "^^"
    while len(word) < LONGEST_WORD + 2:
        options = words.following[word[-2:]]
        letter = options[random.integers(len(options))]
        if letter == "$":
            break
        word += letter
    return word[2:]


def _number(random: np.random.Generator) -> str:
    """A cardinal of one to seven digits, a year or a time of the day."""
    kind = random.random()
    if kind < 0.2:
        return str(random.integers(1500, 2100))
    if kind < 0.35:
        return f"{random.integers(24)}:{random.integers(10, 60)}"
    return str(random.integers(10 ** random.integers(1, 8)))


def random_text(random: np.random.Generator, language: str) -> str:
    """A text of one to eight parts."""
    words = vocabulary(language)

    def part() -> str:
        kind = random.random()
        if kind < 0.55:
            return str(words.names[random.integers(len(words.names))])
        if kind < 0.8:
            return pseudo_word(random, words)
        if kind < 0.93:
            return _number(random)
        if kind < 0.97:
            return f"{random.integers(1, 32)} {words.months[random.integers(len(words.months))]} {_number(random)}"
        return " ".join(random.choice(words.letters, size=random.integers(2, 6)))

    text = part()
    for _ in range(random.integers(0, 8)):
        text += (", " if random.random() < 0.25 else " ") + part()
    return text + str(random.choice([".", ".", ".", "?", "!"]))
