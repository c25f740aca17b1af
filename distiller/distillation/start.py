"""Starting a run. Imports that take seconds come after every check that needs none of them."""

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


def start(recipe: Recipe, output: Path, overwrite: bool = False, dry_run: bool = False) -> None:
    """Begin or continue the run of a recipe in `output`, or show the results of a complete one.

    Args:
        overwrite: remove an earlier run first.
        dry_run: only print the recipe and its costs.

    Raises:
        UserError: whatever the user can correct.
    """
    recipe = recipe if dry_run or overwrite else with_settled_batches(output, recipe)
    if dry_run:
        from distiller.distillation.plan import print_plan

        print_plan(recipe)
    else:
        carry_out(recipe, output, overwrite, _distil, _reopen, _show)


def carry_out(
    recipe: AnyRecipe,
    output: Path,
    overwrite: bool,
    work: Callable[[Any, Path], None],
    reopen: Callable[[Any, Path], None],
    show: Callable[[Path], None],
) -> None:
    """Begin or continue a run of any kind in `output`, or show the results of a complete one.

    Args:
        work: the run, of its recipe with the devices settled, and of the folder, which is locked.
        reopen: checks that the inputs of a complete run are the same where they lie now.
        show: prints the results of the folder.

    Raises:
        UserError: whatever the user can correct.
    """
    if is_complete(output) and not overwrite:
        check_same_recipe(output, recipe, known_paths(output))
        if moved(output, recipe):
            reopen(recipe, output)
        if rank() == 0:
            show(output)
        return
    recipe = replace(cast(Any, recipe), trainer=place(recipe.trainer))
    if rank() > 0:
        work(recipe, output)
    else:
        with lock_folder(output):
            prepare(output, recipe, overwrite)
            with forgetting_a_failed_start(output):
                work(recipe, output)


def _distil(recipe: Recipe, output: Path) -> None:
    from distiller.distillation.distil import distil

    distil(recipe, output)


def _reopen(recipe: Recipe, output: Path) -> None:
    from distiller.distillation.distil import open_run

    open_run(recipe, output)


def _show(output: Path) -> None:
    from distiller.reports.report import print_report

    print_report(output)
