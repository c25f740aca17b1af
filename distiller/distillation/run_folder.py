"""A run's folder: whose it is, what may continue in it, and that one run at a time writes there."""

import os
from pathlib import Path

from distiller.common.files import LOCK, remove, sweep
from distiller.recipes.recipe import RESUMABLE, Recipe, first_difference, save
from upstream.errors import UserError

RECIPE, REPORT = "recipe.yaml", "report.json"

# Where a run is placed decides its last bits, so it may not change while the run lasts; a finished one is only shown.
PLACEMENT = frozenset({"trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"})

# What may lie in a folder before its run: shells and schedulers write their logs there.
LOGS = frozenset({".log", ".txt", ".out", ".err"})


def is_finished(output: Path) -> bool:
    """Whether a run has ended here (its report is the last thing that a run writes)."""
    return os.path.isfile(output / REPORT)  # False, too, where one may not look


def check_same_recipe(output: Path, recipe: Recipe) -> None:
    """
    Raises:
        UserError: the output was made with another recipe; names the first key that differs, and both values.
    """
    ignore = RESUMABLE | PLACEMENT if is_finished(output) else RESUMABLE
    if difference := first_difference(output / RECIPE, recipe, ignore):
        raise UserError(f"{output} was made with another recipe: {difference}; give another --output or --overwrite")


def prepare(output: Path, recipe: Recipe, overwrite: bool) -> None:
    """Make `output` ready for a run of `recipe` to begin or continue, and note the recipe in it.

    With `overwrite` an earlier run's files are removed, whatever is among them.

    Raises:
        UserError: the files there are no run's, or that of another recipe.
    """
    files = [path for path in output.iterdir() if path.name != LOCK]
    foreign = [path for path in files if not (path.name.startswith(".") or (path.is_file() and path.suffix in LOGS))]
    if not (output / RECIPE).is_file():
        if foreign:
            raise UserError(
                f"{output} holds {foreign[0].name}, which is no run's: there is no {RECIPE}; give another --output"
            )
    elif overwrite:
        last = {REPORT: 0, RECIPE: 2}  # a removal that is interrupted leaves a run that is unfinished, and ours
        for path in sorted(files, key=lambda path: last.get(path.name, 1)):
            remove(path)
    else:
        check_same_recipe(output, recipe)
        sweep(output)
    save(recipe, output / RECIPE)
