#!/usr/bin/env python
"""The command distiller/results.py: rows of docs/results from finished runs."""

import sys
from pathlib import Path

if __name__ == "__main__":  # runs uninstalled and from any directory
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections.abc import Sequence

from distiller.common.command import Parser, run_command
from distiller.reports.results import collect

DESCRIPTION = """\
Copy the results of finished runs (report.json) into a table, one row per run.

If the table already contains a run (same command, commit and time), its row is updated.
"""

EPILOG = """\
example:
  python distiller/results.py --table docs/results/star.csv exp/star exp/star-raw
"""


def parser() -> Parser:
    built = Parser(prog="distiller/results.py", description=DESCRIPTION, epilog=EPILOG)
    built.add_argument("outputs", metavar="DIR", type=Path, nargs="+", help="folders of finished runs")
    built.add_argument("--table", metavar="CSV", type=Path, required=True, help="table to add the rows to")
    return built


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(lambda: print(collect(**vars(parser().parse_args(argv)))))


if __name__ == "__main__":
    sys.exit(main())
