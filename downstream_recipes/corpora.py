"""The corpora of SUPERB: check those you have, or make miniature ones.

python downstream_recipes/corpora.py check corpora.yaml      # what is missing, where to get it, hours of audio
python downstream_recipes/corpora.py make-mini DIR           # synthetic, in the layout of every task; DIR/corpora.yaml
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from distiller.common.command import FAILED, Parser, run_command
from downstream_recipes.miniature.make import corpora_file, make_miniature
from downstream_recipes.tasks.corpora_check import check_corpora
from downstream_recipes.tasks.recipes import read_corpora


def parser() -> Parser:
    parser = Parser(any_path=True, prog="corpora.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="what is missing").add_argument("file", help="as downstream_recipes/corpora.yaml")
    commands.add_parser("make-mini", help="synthesise miniature corpora").add_argument("directory", type=Path)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(lambda: _main(parser().parse_args(argv)))


def _main(arguments: argparse.Namespace) -> int:
    if arguments.command == "make-mini":
        print(f"use --corpora {make_miniature(arguments.directory)}")
        return 0
    report, complete = check_corpora(read_corpora(corpora_file(arguments.file)))
    print(report)
    return 0 if complete else FAILED


if __name__ == "__main__":
    sys.exit(main())
