"""A run's folder: which recipe made it, and whether another run may continue or replace it."""

import os
from pathlib import Path

from distiller.common.files import LOCK, remove, sweep
from distiller.recipes.recipe import RESUMABLE, Recipe, first_difference, save
from upstream.errors import UserError

RECIPE, REPORT = "recipe.yaml", "report.json"

# Placement changes the last bits of the results, so it may not change during a run; a complete run is only shown.
PLACEMENT = frozenset({"trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"})

# Files that may be in the folder before its run: shells and schedulers write their logs there.
LOGS = frozenset({".log", ".txt", ".out", ".err"})


def is_complete(output: Path) -> bool:
    """Whether a run has ended here: its report is the last file that a run writes."""
    return os.path.isfile(output / REPORT)  # False also without permission to look


def check_same_recipe(output: Path, recipe: Recipe) -> None:
    """
    Raises:
        UserError: the output was made with another recipe; names the first key that differs, and both values.
    """
    ignore = RESUMABLE | PLACEMENT if is_complete(output) else RESUMABLE
    if difference := first_difference(output / RECIPE, recipe, ignore):
        raise UserError(f"{output} was made with another recipe: {difference}; choose another --output, or --overwrite")


def prepare(output: Path, recipe: Recipe, overwrite: bool) -> None:
    """Make `output` ready for a run of `recipe` to begin or continue, and save the recipe in it.

    Args:
        overwrite: remove all files of an earlier run.

    Raises:
        UserError: the files there are not a run's, or a run's of another recipe.
    """
    files = [path for path in output.iterdir() if path.name != LOCK]
    foreign = [path for path in files if not (path.name.startswith(".") or (path.is_file() and path.suffix in LOGS))]
    if not (output / RECIPE).is_file():
        if foreign:
            raise UserError(
                f"{output} is not a run folder (it contains {foreign[0].name} but no {RECIPE}); choose another --output"
            )
    elif overwrite:
        last = {REPORT: 0, RECIPE: 2}  # an interrupted removal leaves an incomplete run that can be removed again
        for path in sorted(files, key=lambda path: last.get(path.name, 1)):
            remove(path)
    else:
        check_same_recipe(output, recipe)
        sweep(output)
    save(recipe, output / RECIPE)
