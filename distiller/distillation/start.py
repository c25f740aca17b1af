"""Starting a run. Slow imports come after all checks that do not need them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from distiller.common.files import lock_folder
from distiller.common.process import rank
from distiller.distillation.run_folder import (
    check_same_recipe,
    forgetting_a_failed_start,
    is_complete,
    known_paths,
    moved,
    prepare,
    with_settled_batches,
)
from distiller.recipes.recipe import AnyRecipe, Recipe
from distiller.training.devices import place

Opened = tuple[Callable[[Any, Path], object], Callable[[Any, Path], object], Callable[[Path], object]]


def start(recipe: Recipe, output: Path, overwrite: bool = False, dry_run: bool = False) -> None:
    """Begin or continue the run of a recipe in `output`, or show the results of a complete one.

    Args:
        overwrite: remove an earlier run first.
        dry_run: only print the recipe and its costs.

    Raises:
        UserError: whatever the user can correct.
    """
    if dry_run:
        from distiller.distillation.plan import print_plan

        print_plan(recipe)
    else:
        carry_out(recipe if overwrite else with_settled_batches(output, recipe), output, overwrite, _opened)


def carry_out(recipe: AnyRecipe, output: Path, overwrite: bool, opened: Callable[[], Opened]) -> None:
    """`start`, for recipes of any kind.

    Args:
        opened: does the slow imports; returns functions to run a recipe in a folder, open its inputs, and show results.
    """
    if is_complete(output) and not overwrite:
        check_same_recipe(output, recipe, known_paths(output))
        _, open_run, show = opened()
        if moved(output, recipe):
            open_run(recipe, output)
        if rank() == 0:
            show(output)
        return
    recipe = replace(cast(Any, recipe), trainer=place(recipe.trainer))
    if rank() > 0:
        opened()[0](recipe, output)
        return
    with lock_folder(output):
        prepare(output, recipe, overwrite)
        with forgetting_a_failed_start(output):
            opened()[0](recipe, output)


def _opened() -> Opened:
    from distiller.distillation.distil import distil, open_run
    from distiller.reports.report import print_report

    return distil, open_run, print_report
