"""The bundled teacher: what its recipe makes, small enough to carry, and with its sources named."""

import re

import pytest

from distiller.recipes.recipe import load_recipe
from distiller.teachers.teacher import BUNDLED_TEACHER, load_teacher
from tests.distiller.distillation.test_whisper_teacher import WHISPER


def test_the_shipped_teacher_is_what_its_recipe_makes() -> None:
    teacher, student = load_teacher("bundled"), load_recipe("bundled-teacher").student
    assert teacher.config == student.shape(WHISPER)
    assert sum(parameter.numel() for parameter in teacher.parameters()) == 5_716_224
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_it_is_at_most_16_megabytes() -> None:
    assert sum(path.stat().st_size for path in BUNDLED_TEACHER.iterdir()) < 16e6


@pytest.mark.parametrize(
    ("source", "licence"),
    [
        ("openai/whisper-tiny.en", "MIT"),
        ("asterisk-core-sounds", "CC-BY-SA 3.0"),
        ("klettres", "GPL 2"),
        ("gcin-voice", "LGPL 3"),
        ("hedgewars", "GFDL 1.3"),
        ("espeak-ng", "GPL 3"),
    ],
)
def test_its_card_names_what_it_was_trained_on(source: str, licence: str) -> None:
    rows = [line for line in (BUNDLED_TEACHER / "README.md").read_text().splitlines() if source in line]
    assert any(re.search(rf"\b{re.escape(licence)}", row) for row in rows)
