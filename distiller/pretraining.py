#!/usr/bin/env python
"""The command distiller/pretraining.py: pre-train the bundled teacher on the synthetic corpus."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from collections.abc import Sequence

from distiller.common.command import Parser, run_command


def parser() -> Parser:
    built = Parser(prog="distiller/pretraining.py", description="Pre-train the bundled teacher on synthetic speech.")
    built.add_argument("--output", type=Path, default=Path("exp/teacher"), help="folder (default: exp/teacher)")
    built.add_argument("--steps", type=int, default=4000, help="optimiser steps (default: 4000)")
    built.add_argument("--batch-seconds", type=float, default=20.0, help="of audio in a batch (default: 20)")
    built.add_argument("--lr", type=float, default=2e-3, help="peak learning rate (default: 2e-3)")
    built.add_argument("--seed", type=int, default=0, help="(default: 0)")
    accelerators = ("auto", "cpu", "gpu", "cuda", "mps")
    built.add_argument("--accelerator", default="auto", choices=accelerators, help="(default: auto)")
    return built


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(lambda: _main(parser().parse_args(argv)))


def _main(arguments: argparse.Namespace) -> None:
    from distiller.distillation.pretraining import pretrain  # takes seconds

    pretrain(**vars(arguments))


if __name__ == "__main__":
    sys.exit(main())
