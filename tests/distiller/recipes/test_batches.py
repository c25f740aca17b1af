"""`corpus.batch_seconds: auto`: equal batches that make the recipe's step, wherever it runs."""

import math

import pytest

from distiller.recipes.recipe import in_batches, load_recipe, to_yaml
from distiller.recipes.yaml_files import shipped

PAPERS = sorted(name for name in shipped() if name.endswith("0h"))


@pytest.mark.parametrize("name", PAPERS)
def test_a_step_is_as_long_with_auto_as_with_the_recipes_numbers(name: str) -> None:
    recipe = load_recipe(name, ["corpus.path=x"])
    assert recipe.corpus.step_seconds == recipe.corpus.seconds * recipe.trainer.accumulate


@pytest.mark.parametrize("devices", [1, 3, 8, 32])
@pytest.mark.parametrize("most", [20.0, 57.5, 100.0, 333.3, math.inf])
def test_equal_batches_make_the_step(devices: int, most: float) -> None:
    recipe = load_recipe("star-hubert-960h", ["corpus.path=x", "corpus.batch_seconds=auto"])
    settled = in_batches(recipe, devices, most)
    seconds, count = settled.corpus.seconds, settled.trainer.accumulate
    assert seconds * count * devices == pytest.approx(1840)
    assert seconds <= most * (1 + 1e-6)
    assert count == 1 or 1840 / devices / (count - 1) > most  # no more of them than that takes


def test_numbers_count_where_they_are_given() -> None:
    """step_seconds is for auto: other numbers of devices and batches contradict nothing."""
    recipe = load_recipe("star-hubert-100h", ["corpus.path=x", "trainer.devices=4", "trainer.accumulate=1"])
    assert (recipe.corpus.batch_seconds, recipe.trainer.accumulate) == (115.0, 1)
    chosen = load_recipe("star-hubert-100h", ["corpus.path=x", "corpus.batch_seconds=auto", "corpus.step_seconds=920"])
    assert "batch_seconds: auto\n" in to_yaml(chosen)
    assert in_batches(chosen, 4, 100).trainer.accumulate == 3
