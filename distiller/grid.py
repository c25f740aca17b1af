#!/usr/bin/env python
"""The command distiller/grid.py: several methods, with seeds and where they prune to several sizes."""

import sys
from pathlib import Path

if __name__ == "__main__":  # runs uninstalled and from any directory
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import re
import shlex
from collections.abc import Sequence

from distiller.benchmarks.grid import METHODS, PRUNING, Method, cells_of, run_grid
from distiller.common.command import Parser, comma_separated, run_command
from distiller.common.files import check_writable
from upstream.errors import one_of, require

DESCRIPTION = """\
Run several methods with several seeds and, if they prune, at several sizes; write a table of all runs and a summary
of their differences.
"""

EPILOG = """\
examples:
  python distiller/grid.py --output exp/grid --table docs/results/skill.csv --jobs 2
  python distiller/grid.py --output exp/grid --table docs/results/skill.csv --jobs 2 trainer.steps=200
  python distiller/grid.py --output exp/grid --table exp/grid/half.csv --targets 0.5 --seeds 1,2,3 --paired 0.5
  python distiller/grid.py --output exp/grid --table docs/results/skill.csv --report
  python distiller/grid.py --output exp/grid --table exp/grid/narrow.csv --methods star,distilhubert \\
      --also "units star objective=units objective.targets=exp/units" probe.words=[pairs/fr]

The first of --seeds is run at all --targets, the others only at --paired; star and distilhubert do not prune and have
one size. Each run is a run of distiller/run.py, and key=value changes its recipe. Once a run is finished, later ones
reuse its probes of the teacher and of log-mel (probe.references). Run the same command again to continue unfinished
runs; finished ones are kept. A summary (.md) and a figure (.png) are written next to the table.
"""


def parser() -> Parser:
    built = Parser(prog="distiller/grid.py", description=DESCRIPTION, epilog=EPILOG)
    built.add_argument("--output", type=Path, required=True, metavar="DIR", help="a folder for all runs")
    built.add_argument("--table", type=Path, required=True, metavar="CSV", help="table to write, one row per run")
    texts, numbers, integers, words = *(comma_separated(kind) for kind in (str, float, int)), shlex.split
    built.add_argument(
        "--methods",
        type=texts,
        default=list(PRUNING),
        help=f"some of {','.join(METHODS)} (default: {','.join(PRUNING)})",
    )
    also = {"type": words, "action": "append", "default": [], "metavar": '"NAME METHOD key=value ..."'}
    built.add_argument("--also", **also, help="a named variant: a method of run.py with its own recipe changes")
    built.add_argument("--targets", type=numbers, default=[0.5, 0.75, 0.85], help="sparsities (default: 0.5,0.75,0.85)")
    built.add_argument("--paired", type=float, default=0.75, help="target at which seeds are repeated (default: 0.75)")
    built.add_argument("--seeds", type=integers, default=[1, 2, 3, 4, 5], help="(default: 1,2,3,4,5)")
    built.add_argument("--jobs", type=int, default=1, help="simultaneous runs, which share the cores (default: 1)")
    built.add_argument(
        "--report", action="store_true", help="train nothing; write the table and summary of finished runs"
    )
    built.add_argument("overrides", metavar="key=value", nargs="*", help="changes to the recipe of every run")
    return built


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 1 when a run failed, otherwise as `run_command`."""
    return run_command(lambda: _main(parser().parse_intermixed_args(argv)))


def _main(options: argparse.Namespace) -> int:
    for method in options.methods:
        require(method in METHODS, "--methods", method, one_of(method, list(METHODS)))
    methods = [METHODS[method] for method in options.methods]
    for words in options.also:
        require(len(words) >= 2, "--also", shlex.join(words), 'at least "NAME METHOD"')
        require(bool(re.fullmatch(r"[\w.+-]+", words[0])), "--also", words[0], "a name of letters, digits and _ . + -")
        methods.append(Method(words[0], words[1], tuple(words[2:])))
    require(len({method.name for method in methods}) == len(methods), "--also", methods[-1].name, "a unique name")
    for name, targets in (("--targets", options.targets), ("--paired", [options.paired])):
        for target in targets:
            require(0 < target < 1, name, target, "a share between 0 and 1")
    for seed in options.seeds:
        require(0 <= seed < 2**32, "--seeds", seed, "an integer from 0 to 4294967295")
    require(options.jobs >= 1, "--jobs", options.jobs, "an integer of at least 1")
    for folder in (options.output, options.table.parent):
        check_writable(folder)
    cells = cells_of(methods, options.targets, options.paired, options.seeds)
    settings = {key: getattr(options, key) for key in ("output", "table", "paired", "jobs", "overrides", "report")}
    return 0 if run_grid(cells, **settings) else 1


if __name__ == "__main__":
    sys.exit(main())
