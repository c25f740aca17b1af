"""A small stand-in for the package babel, which is not a dependency."""

import sys
from types import SimpleNamespace

import pytest

from distiller.voices.texts import vocabulary

NAMES = {
    "en": ("Vatican City", "New Zealand", "Old Norse (ancient)", "Russian ruble", "kilometers per hour", "Monday"),
    "cs": ("Česko", "Jižní Korea", "Kirgizština", "Koruna česká", "kilometry za hodinu", "pondělí"),
    "ja": ("イタリア", "日本語", "スペイン語", "ユーロ", "メートル", "月曜日"),
}
MONTHS = {"en": "January", "cs": "ledna", "ja": "1月"}


def _locale(language: str) -> SimpleNamespace:
    names = dict(enumerate(NAMES[language]))
    return SimpleNamespace(
        territories=names, languages={}, scripts={0: "2 Latin-1"}, currencies={},
        days={"format": {"wide": {}}}, months={"format": {"wide": {1: MONTHS[language]}}},
        unit_display_names={"length": {"long": "metre" if language == "en" else "", "short": "MTR"}, "none": {}},
    )  # fmt: skip


@pytest.fixture(autouse=True)
def babel(monkeypatch: pytest.MonkeyPatch):
    stand_in = SimpleNamespace(Locale=SimpleNamespace(parse=_locale))
    monkeypatch.setitem(sys.modules, "babel", stand_in)
    vocabulary.cache_clear()
    yield
    vocabulary.cache_clear()
