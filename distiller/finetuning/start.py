"""From a command line to a fine-tuning run. Slow imports come after all checks that do not need them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from distiller.common.files import expanded
from distiller.distillation.start import Opened, carry_out
from distiller.finetuning.config import LOG_MEL, FineTuning
from distiller.recipes.command_line import absolute_corpus, absolute_model
from distiller.recipes.recipe import to_yaml
from upstream.errors import UserError


def start(recipe: FineTuning, output: Path, overwrite: bool = False, dry_run: bool = False) -> None:
    """Begin or continue the run of a recipe in `output`, show the results of a complete one, or print the recipe.

    Raises:
        UserError: whatever the user can correct.
    """
    recipe = with_absolute_paths(recipe, dry_run)
    if dry_run:
        print(to_yaml(recipe), end="")
    else:
        carry_out(recipe, output, overwrite, _opened)


def with_absolute_paths(recipe: FineTuning, dry_run: bool = False) -> FineTuning:
    """The same recipe with paths that are valid in any directory.

    Raises:
        UserError: a path that does not exist; hub names are not checked, nor, in a dry run, the corpus.
    """
    model = recipe.model if recipe.model == LOG_MEL else absolute_model(recipe.model, "--model")
    settled: dict[str, Any] = {"model": model, "corpus": absolute_corpus(recipe.corpus, "--corpus", dry_run)}
    for name in ("text", "vocabulary"):
        section = getattr(recipe, name)
        if section.path is not None:
            path = expanded(section.path).absolute()
            if not (path.exists() or dry_run):
                raise UserError(f"{name}.path {section.path} does not exist")
            settled[name] = replace(section, path=str(path))
    return replace(recipe, **settled)


def _opened() -> Opened:
    from distiller.finetuning.finetune import finetune, open_run, print_results

    return finetune, open_run, print_results
