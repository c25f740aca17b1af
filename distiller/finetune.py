#!/usr/bin/env python
"""The command distiller/finetune.py: a speech recogniser from any encoder, by CTC."""

import sys
from pathlib import Path

if __name__ == "__main__":  # runs uninstalled and from any directory
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from collections.abc import Sequence

from distiller.common.command import Parser, run_command
from distiller.finetuning.config import RECIPES, resolve
from distiller.finetuning.start import start
from distiller.recipes.yaml_files import shipped

DESCRIPTION = """\
Fine-tune an encoder for speech recognition: a linear head on its last layer, trained with CTC on transcribed speech.
At the end the held-out part is transcribed, and its word and character error rates are written to report.json.

Transcripts are found beside the audio in LibriSpeech's layout, in the supervisions of a Lhotse manifest or Shar folder,
or after the tab of a list of PATH<TAB>TEXT; text.path=FILE names another place. Run the same command again to continue
an interrupted run, or to show the results of a finished one.
"""

EPILOG = """\
examples:
  python distiller/finetune.py --model bundled --corpus synthetic --output exp/ctc
        minutes on a CPU
  python distiller/finetune.py --recipe ctc-100h --model exp/star/student --corpus /data/LibriSpeech
        train-clean-100, tested on dev-clean
  python distiller/finetune.py --model exp/star/student --corpus clips.txt vocabulary.kind=bpe vocabulary.size=300
        pieces of words, from lines of PATH<TAB>TEXT
  python distiller/finetune.py --model log-mel --corpus clips.txt --output exp/ctc-log-mel
        the same head without an encoder, to compare with

key=value changes any key that --dry-run prints.

recipes: {recipes}
"""


def parser() -> Parser:
    epilog = EPILOG.format(recipes=" ".join(shipped(RECIPES)))
    built = Parser(prog="distiller/finetune.py", description=DESCRIPTION, epilog=epilog)
    option = built.add_argument
    option("--recipe", metavar="NAME|FILE", default="ctc", help="a recipe listed below, or a YAML file (default: ctc)")
    option(
        "--model", metavar="DIR|ID|log-mel", help="a student, an export, any checkpoint, a hub name, bundled, log-mel"
    )
    option("--corpus", metavar="DIR|LIST|MANIFEST", help="transcribed speech: a folder, a list, Lhotse, synthetic")
    option("--output", metavar="DIR", type=Path, help="folder for all results (default: exp/<recipe>)")
    option("--overwrite", action="store_true", help="remove the run in the output folder and start afresh")
    option("--dry-run", action="store_true", help="print the recipe, and change nothing")
    option("overrides", metavar="key=value", nargs="*", help="changes to the recipe, anywhere among the options")
    return built


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(lambda: _main(parser().parse_intermixed_args(argv)))


def _main(options: argparse.Namespace) -> None:
    recipe = resolve(options.recipe, options.model, options.corpus, options.overrides)
    start(recipe, options.output or Path("exp") / Path(options.recipe).stem, options.overwrite, options.dry_run)


if __name__ == "__main__":
    sys.exit(main())
