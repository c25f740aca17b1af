#!/usr/bin/env python
"""The command distiller/grid.py: pruning to several sizes by several methods, with seeds."""

import sys
from pathlib import Path

if __name__ == "__main__":  # runs uninstalled and from any directory
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from collections.abc import Sequence

from distiller.benchmarks.grid import METHODS, cells_of, run_grid
from distiller.common.command import Parser, comma_separated, run_command
from distiller.common.files import check_writable
from upstream.errors import one_of, require

DESCRIPTION = """\
Prune to several sizes by several methods, with seeds: every run, a table of them, and what differs by how much.
"""

EPILOG = """\
examples:
  python distiller/grid.py --output exp/grid --table docs/results/skill.csv --jobs 2
  python distiller/grid.py --output exp/grid --table docs/results/skill.csv --jobs 2 trainer.steps=200
  python distiller/grid.py --output exp/grid --table exp/grid/half.csv --targets 0.5 --seeds 1,2,3 --paired 0.5
  python distiller/grid.py --output exp/grid --table docs/results/skill.csv --report

The first of --seeds is run at all --targets, the others at --paired alone. Each run is one of distiller/run.py, and
key=value changes its recipe. The same command again continues unfinished runs and keeps finished ones. A summary (.md)
and a figure (.png) are written beside the table.
"""


def parser() -> Parser:
    built = Parser(prog="distiller/grid.py", description=DESCRIPTION, epilog=EPILOG)
    built.add_argument("--output", type=Path, required=True, metavar="DIR", help="a folder for all runs")
    built.add_argument("--table", type=Path, required=True, metavar="CSV", help="gets a row for each run")
    texts, numbers, integers = (comma_separated(kind) for kind in (str, float, int))
    built.add_argument("--methods", type=texts, default=list(METHODS), help=f"(default: {','.join(METHODS)})")
    built.add_argument("--targets", type=numbers, default=[0.5, 0.75, 0.85], help="sparsities (default: 0.5,0.75,0.85)")
    built.add_argument("--paired", type=float, default=0.75, help="target at which seeds are repeated (default: 0.75)")
    built.add_argument("--seeds", type=integers, default=[1, 2, 3, 4, 5], help="(default: 1,2,3,4,5)")
    built.add_argument("--jobs", type=int, default=1, help="simultaneous runs, which share the cores (default: 1)")
    built.add_argument("--report", action="store_true", help="train nothing: table and summary of what is finished")
    built.add_argument("overrides", metavar="key=value", nargs="*", help="changes in the recipe of every run")
    return built


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 1 when a run failed, otherwise as `run_command`."""
    return run_command(lambda: _main(parser().parse_intermixed_args(argv)))


def _main(options: argparse.Namespace) -> int:
    for method in options.methods:
        require(method in METHODS, "--methods", method, one_of(method, list(METHODS)))
    for name, targets in (("--targets", options.targets), ("--paired", [options.paired])):
        for target in targets:
            require(0 < target < 1, name, target, "a share between 0 and 1")
    for seed in options.seeds:
        require(0 <= seed < 2**32, "--seeds", seed, "an integer from 0 to 4294967295")
    require(options.jobs >= 1, "--jobs", options.jobs, "an integer of at least 1")
    for folder in (options.output, options.table.parent):
        check_writable(folder)
    cells = cells_of(options.methods, options.targets, options.paired, options.seeds)
    settings = {key: getattr(options, key) for key in ("output", "table", "paired", "jobs", "overrides", "report")}
    return 0 if run_grid(cells, **settings) else 1


if __name__ == "__main__":
    sys.exit(main())
