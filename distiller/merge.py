#!/usr/bin/env python
"""The command distiller/merge.py: the average of several models' weights, as a student folder."""

import sys
from pathlib import Path

if __name__ == "__main__":  # runs uninstalled and from any directory
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import math
from collections.abc import Sequence

from distiller.common.command import Parser, comma_separated, run_command
from distiller.common.files import check_writable
from upstream.errors import UserError, require

DESCRIPTION = """\
Average the weights of encoders of the same shape, such as a student before and after fine-tuning: (1 - ALPHA) times
the first plus ALPHA times the second (Speech-FT, arXiv 2502.12672), or any number of models with --weights.
"""

EPILOG = """\
examples:
  python distiller/merge.py exp/star/student exp/star/fine-tuned --alpha 0.25 --output exp/star/merged
  python distiller/merge.py exp/seed-1/student exp/seed-2/student exp/seed-3/student --output exp/averaged
"""


def parser() -> Parser:
    built = Parser(prog="distiller/merge.py", description=DESCRIPTION, epilog=EPILOG)
    option = built.add_argument
    models = "two or more student folders, other checkpoints, recognisers (heads are dropped) or s3prl's dev-best.ckpt"
    option("models", nargs="+", metavar="MODEL", help=models)
    option("--alpha", type=float, help="weight of the second of two models, usually from 0 to 1")
    option(
        "--weights",
        type=comma_separated(float),
        metavar="W,W,...",
        help="weight of each model, adding up to 1 (default: equal)",
    )
    option("--output", required=True, type=Path, help="folder to write")
    return built


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(lambda: _main(parser().parse_args(argv)), "nothing is merged")


def _main(options: argparse.Namespace) -> None:
    weights = _weights(options)
    check_writable(options.output)
    from distiller.exporters.merging import merge  # takes seconds

    print(merge(options.models, weights, options.output))


def _weights(options: argparse.Namespace) -> list[float]:
    """One for each model."""
    count = len(options.models)
    require(count > 1, "MODEL", options.models[0], "followed by at least one other model")
    twice = [name for name in options.models if options.models.count(name) > 1]
    require(not twice, "MODEL", twice and twice[0], "given only once; use --weights to give a model more weight")
    if options.alpha is not None:
        if options.weights is not None:
            raise UserError("--alpha and --weights cannot be combined; give one of them")
        if count != 2:
            raise UserError(f"--alpha needs two models, not {count}; give --weights")
        require(math.isfinite(options.alpha), "--alpha", options.alpha, "a finite number")
        return [1 - options.alpha, options.alpha]
    if options.weights is None:
        return [1 / count] * count
    require(len(options.weights) == count, "--weights", options.weights, f"{count} numbers, one for each model")
    require(abs(sum(options.weights) - 1) < 1e-6, "--weights", options.weights, "numbers that add up to 1")
    return options.weights


if __name__ == "__main__":
    sys.exit(main())
