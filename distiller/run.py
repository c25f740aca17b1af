#!/usr/bin/env python
"""Distil a speech encoder: a recipe, what the command line changes in it, and the run."""

import sys
from pathlib import Path

if __name__ == "__main__":  # runs uninstalled and from any directory; distiller/ itself is no place to import from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from collections.abc import Sequence
from dataclasses import replace

from distiller.common.command import Parser, run_command
from distiller.common.files import lock_folder
from distiller.common.process import rank
from distiller.distillation.run_folder import check_same_recipe, is_finished, prepare
from distiller.recipes.command_line import recipe_of, with_absolute_paths
from distiller.recipes.recipe import Recipe
from distiller.recipes.yaml_files import methods, shipped
from distiller.training.devices import place

DESCRIPTION = """\
Distil a HuBERT, WavLM or wav2vec 2.0 teacher into a small student.

A recipe says everything about a run; --method NAME takes the recipe of that name. The same command again continues an
interrupted run, and shows the table of a finished one.
"""

EPILOG = """\
examples:
  python distiller/run.py --method star
        the whole job on synthetic speech with the embedded teacher, in minutes on a CPU
  python distiller/run.py --recipe star-hubert-960h --corpus /data/LibriSpeech trainer.devices=4 trainer.accumulate=4
        the paper's setting on four GPUs
  python distiller/run.py --recipe star-wavlm-100h --corpus /data/LibriSpeech --dry-run student.size=S
        what a small WavLM student would cost
  torchrun --nproc-per-node 4 distiller/run.py --recipe star-hubert-100h --corpus /data/LibriSpeech trainer.devices=4

key=value changes any key that --dry-run prints, such as optimizer.lr=5e-3 or objective.scaling=centred. objective=NAME
and student=NAME take another objective or student with its own defaults.

recipes: {recipes}
"""


def parser() -> Parser:
    built = Parser(prog="distiller/run.py", description=DESCRIPTION, epilog=EPILOG.format(recipes=" ".join(shipped())))
    built.add_argument("--method", metavar="NAME", help=f"{', '.join(methods())}: take the recipe of that name")
    built.add_argument("--recipe", metavar="NAME|FILE", help="a recipe by its name below, or a YAML file of your own")
    built.add_argument(
        "--teacher", metavar="embedded|ID|DIR", help="the teacher: embedded, a hub name, a folder or file"
    )
    built.add_argument(
        "--corpus", metavar="embedded|DIR|MANIFEST", help="the audio: embedded, a folder, Lhotse manifests"
    )
    built.add_argument("--output", metavar="DIR", type=Path, help="where everything goes (default: exp/<recipe>)")
    built.add_argument(
        "--overwrite", action="store_true", help="remove the run that the output holds, and start afresh"
    )
    built.add_argument("--dry-run", action="store_true", help="print the recipe and what it costs, and touch nothing")
    built.add_argument("overrides", metavar="key=value", nargs="*", help="changes in the recipe")
    return built


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's options; `overrides` may stand anywhere among them.

    Raises:
        UserError: an option that does not exist or lacks its value.
    """
    return parser().parse_intermixed_args(argv)


def output_of(arguments: argparse.Namespace) -> Path:
    return arguments.output or Path("exp") / Path(arguments.recipe or arguments.method).stem


def run(recipe: Recipe, output: Path, overwrite: bool) -> None:
    """Begin, continue, or show what is finished.

    Raises:
        UserError: whatever the user can mend.
    """
    if is_finished(output) and not overwrite:
        check_same_recipe(output, recipe)
        if rank() == 0:
            from distiller.reports.report import print_report

            print_report(output)
        return
    recipe = replace(recipe, trainer=place(recipe.trainer))
    if rank() > 0:
        distil(recipe, output)
        return
    with lock_folder(output):
        prepare(output, recipe, overwrite)
        distil(recipe, output)


def distil(recipe: Recipe, output: Path) -> None:
    """The run itself; its imports take seconds, so they come after every check that needs none of them."""
    from distiller.distillation.distil import distil

    distil(recipe, output)


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(lambda: _carry_out(parse(argv)))


def _carry_out(arguments: argparse.Namespace) -> None:
    recipe = with_absolute_paths(recipe_of(arguments), arguments.dry_run)
    if arguments.dry_run:
        from distiller.distillation.plan import print_plan

        print_plan(recipe)
        return
    run(recipe, output_of(arguments), arguments.overwrite)


if __name__ == "__main__":
    sys.exit(main())
