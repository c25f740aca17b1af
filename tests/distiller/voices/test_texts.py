"""Texts in many languages."""

import sys

import numpy as np
import pytest

from distiller.voices.languages import ACCENTS
from distiller.voices.texts import LONGEST_WORD, pseudo_word, random_text, vocabulary
from upstream.errors import UserError


def test_a_vocabulary_is_in_the_script_that_is_read() -> None:
    english, czech, japanese = map(vocabulary, ("en", "cs", "ja"))
    assert english.names == (
        "Vatican City", "New Zealand", "Old Norse ancient", "Russian ruble", "kilometers per hour", "Monday", "Latin",
        "January", "metre",
    )  # fmt: skip
    assert english.months == ("January",)
    assert {"č", "ě"} <= set(czech.letters)
    assert japanese.names == ("イタリア", "スペイン", "ユーロ", "メートル")
    assert japanese.months == japanese.names  # 1月 is not in kana


def test_pseudo_words_follow_the_letters_of_the_language() -> None:
    random, words = np.random.default_rng(1), vocabulary("cs")
    made = {pseudo_word(random, words) for _ in range(200)}
    triples = {f"^^{word}$"[i : i + 3] for name in words.names for word in name.lower().split() for i in range(20)}
    assert len(made) > 10
    assert all(0 < len(word) <= LONGEST_WORD for word in made)
    assert {word[i : i + 3] for word in made for i in range(len(word) - 2)} <= triples


def test_a_text_depends_on_its_seed_and_language_alone() -> None:
    texts = [random_text(np.random.default_rng(seed), "en") for seed in range(50)]
    assert texts == [random_text(np.random.default_rng(seed), "en") for seed in range(50)]
    assert len(set(texts)) == 50
    everything = " ".join(texts)
    assert any(letter.isdigit() for letter in everything)
    assert "January" in everything
    assert "Norse" in everything
    assert "MTR" not in everything


def test_without_babel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "babel", None)
    with pytest.raises(UserError, match="needs the package babel, which is not installed: `uv pip install babel`"):
        vocabulary("en")


@pytest.mark.parametrize("language", ACCENTS)
def test_every_language_has_words(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real package, where it is installed."""
    monkeypatch.delitem(sys.modules, "babel")
    pytest.importorskip("babel")
    words = vocabulary(language)
    assert len(words.names) > 500
    assert len(words.letters) > 20
