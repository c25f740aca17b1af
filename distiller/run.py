#!/usr/bin/env python
"""Distil a speech encoder."""

import sys
from pathlib import Path

if __name__ == "__main__":  # runs uninstalled and from any directory; nothing is imported from distiller/ itself
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections.abc import Sequence

from distiller.common.command import Parser, run_command
from distiller.distillation.start import start
from distiller.recipes.command_line import recipe_of
from distiller.recipes.yaml_files import methods, shipped

DESCRIPTION = """\
Distil a HuBERT, WavLM or wav2vec 2.0 teacher into a small student.

A recipe defines everything about a run; --method NAME uses the recipe of that name. Run the same command again to
continue an interrupted run, or to show the results of a finished one.
"""

EPILOG = """\
examples:
  python distiller/run.py --method star
        a complete run on synthetic speech with the bundled teacher, in minutes on a CPU
  python distiller/run.py --recipe star-hubert-960h --corpus /data/LibriSpeech trainer.devices=4 trainer.accumulate=4
        the paper's setting on four GPUs
  python distiller/run.py --recipe star-wavlm-100h --corpus /data/LibriSpeech --dry-run student.size=S
        what a small WavLM student would cost
  torchrun --nproc-per-node 4 distiller/run.py --recipe star-hubert-100h --corpus /data/LibriSpeech trainer.devices=4

key=value changes any key that --dry-run prints, such as optimizer.lr=5e-3 or objective.scaling=centred. objective=NAME
and student=NAME choose another objective or student with its own defaults.

recipes: {recipes}
"""


def parser() -> Parser:
    built = Parser(prog="distiller/run.py", description=DESCRIPTION, epilog=EPILOG.format(recipes=" ".join(shipped())))
    option = built.add_argument
    option("--method", metavar="NAME", help=f"{', '.join(methods())}: use the recipe of that name")
    option("--recipe", metavar="NAME|FILE", help="a recipe listed below, or a YAML file of your own")
    option("--teacher", metavar="bundled|ID|DIR", help="the teacher: bundled, a hub name, a folder or file")
    option("--corpus", metavar="synthetic|DIR|MANIFEST", help="the audio: synthetic, a folder, Lhotse manifests")
    option("--output", metavar="DIR", type=Path, help="folder for all results (default: exp/<recipe>)")
    option("--overwrite", action="store_true", help="remove the run in the output folder and start afresh")
    option("--dry-run", action="store_true", help="print the recipe and its costs, and change nothing")
    option("overrides", metavar="key=value", nargs="*", help="changes to the recipe, anywhere among the options")
    return built


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0; 2 for a user's mistake; 130 or 143 when interrupted."""
    return run_command(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    arguments = parser().parse_intermixed_args(argv)
    recipe = recipe_of(arguments)
    output = arguments.output or Path("exp") / Path(arguments.recipe or arguments.method).stem
    start(recipe, output, arguments.overwrite, arguments.dry_run)


if __name__ == "__main__":
    sys.exit(main())
