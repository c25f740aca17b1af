#!/usr/bin/env python
"""The command distiller/probe.py: what can be read from the layers of encoders on real recordings."""

import sys
from pathlib import Path

if __name__ == "__main__":  # runs uninstalled and from any directory
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from collections.abc import Sequence

from distiller.common.command import Parser, run_command
from distiller.common.files import check_writable

DESCRIPTION = """\
Probe every layer of encoders on real recordings, with log-mel energies beside them, and write a table.

--words: for each recording the nearest of another folder is found by dynamic time warping. Counted is how often it is
the same word, said by another speaker or over another channel.
"""

EPILOG = """\
examples:
  distiller/probes/prompt_pairs.sh pairs
  python distiller/probe.py bundled exp/star/student --words pairs/fr
"""


def parser() -> Parser:
    built = Parser(prog="distiller/probe.py", description=DESCRIPTION, epilog=EPILOG)
    built.add_argument("models", metavar="MODEL", nargs="+", help="bundled, a hub name, a folder or file")
    words = {"type": Path, "action": "append", "default": [], "metavar": "FOLDER", "required": True}
    built.add_argument("--words", **words, help="has GROUP/WORD.flac; may be given again")
    table = "the table (default: exp/probe.csv)"
    built.add_argument("--output", type=Path, default=Path("exp/probe.csv"), metavar="CSV", help=table)
    return built


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(lambda: _main(parser().parse_args(argv)), "run the same command to start again")


def _main(options: argparse.Namespace) -> None:
    check_writable(options.output.parent)
    from distiller.distillation.teacher import load_teacher  # takes seconds
    from distiller.probes.evaluate import evaluate

    evaluate({name: load_teacher(name) for name in options.models}, options.words, options.output)
    print(options.output)


if __name__ == "__main__":
    sys.exit(main())
