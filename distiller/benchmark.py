#!/usr/bin/env python
"""The command distiller/benchmark.py: what encoders and training steps cost on this machine."""

import sys
from pathlib import Path

if __name__ == "__main__":  # runs uninstalled and from any directory
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from collections.abc import Sequence

from distiller.common.command import Parser, comma_separated, run_command
from distiller.common.files import check_writable
from upstream.errors import UserError, one_of, require

DESCRIPTION = """\
Measure encoders side by side: parameters, multiply-accumulates, file size, real-time factor, memory.
"""

EPILOG = """\
examples:
  python distiller/benchmark.py exp/star/student exp/star/student.onnx exp/star/student-int8.onnx
  python distiller/benchmark.py transformers:facebook/hubert-base-ls960 facebook/hubert-base-ls960 exp/star-960h/student
  python distiller/benchmark.py bundled exp/star/student --threads 4 --batches 1,8,32 --device cuda

  python distiller/benchmark.py random:starhubert random:starhubert-logmel live:random:starhubert-chunked
  python distiller/benchmark.py transformers:random:hubert-base random:hubert-base random:starhubert random:skill
  python distiller/benchmark.py --train star,skill --threads 2
  python distiller/benchmark.py --train star,skill --device cuda --batches 8,32
  python distiller/benchmark.py --train star --device cuda trainer.precision=32-true
  python distiller/benchmark.py --train star,skill --device cuda --loop 60 --hours 3
  python distiller/benchmark.py exp/star/student --long 600 --device cuda
  python distiller/benchmark.py --check --device cuda

PATH is a student folder, any checkpoint that upstream.checkpoint.load opens, an ONNX file written by
distiller/export.py, bundled for the teacher of this repository, or transformers:PATH for a folder or hub name run by
`transformers` itself. live:PATH processes wavs chunk by chunk; PATH must be a streaming student
(student.attention=chunked) or an ONNX file exported from one with --streaming. random:hubert-base, random:skill and
random:starhubert (optionally followed by -thin, -logmel, -chunked or -logmel-chunked) are models of these shapes with
random weights. Speed-ups are relative to the first PATH.

--train measures optimiser steps at paper scale instead, relative to the speed of matrix multiplication, and compares
them with two plain `transformers` models trained with the naive loss; key=value changes the recipe (star-hubert-960h or
skill-hubert-960h). With --loop the whole training loop runs, on WAV files of noise in a temporary folder. --long
compares encoding a long wav in overlapping chunks and in one piece. --check compares the results of a device with
those of the CPU: states, losses, gradients, and a run that is killed and resumed; the exit code is 1 if any of them is
outside its limit.
"""
LIMITS = {"seconds": (0.1, 600), "threads": (1, 1024), "rounds": (1, 1000), "long": (1, 36_000)}
LIMITS |= {"loop": (1, 86_400), "hours": (0.001, 1000), "chunk": (0.1, 3600), "overlap": (0, 600)}


def parser() -> Parser:
    built = Parser(prog="distiller/benchmark.py", description=DESCRIPTION, epilog=EPILOG)
    built.add_argument(
        "paths", metavar="PATH|key=value", nargs="*", help="an encoder; with --train, a change to the recipe"
    )
    methods = {"type": comma_separated(str), "default": [], "metavar": "METHODS"}
    built.add_argument("--train", **methods, help="measure training steps of star, skill, or star,skill")
    built.add_argument("--check", action="store_true", help="compare the results of --device with the CPU")
    loop = {"type": float, "nargs": "?", "const": 60.0, "metavar": "SECONDS"}
    built.add_argument(
        "--loop", **loop, help="with --train: run the training loop this long after the first five steps (default: 60)"
    )
    built.add_argument("--hours", type=float, default=1.0, help="hours of noise that --loop trains on (default: 1)")
    built.add_argument(
        "--long", type=float, metavar="SECONDS", help="length of a wav to encode in chunks and in one piece"
    )
    built.add_argument("--chunk", type=float, default=30.0, help="seconds per chunk, with --long (default: 30)")
    built.add_argument(
        "--overlap", type=float, default=5.0, help="seconds of context on each side of a chunk (default: 5)"
    )
    built.add_argument("--seconds", type=float, help="length of each wav (default: 10; with --train 8, on cuda 14.375)")
    sizes = "batch sizes (default: 1,8; with --train 2, on cuda 8,32)"
    built.add_argument("--batches", type=comma_separated(int), help=sizes)
    built.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    built.add_argument(
        "--rounds", type=int, default=7, help="measurements of each, of which the median is reported (default: 7)"
    )
    built.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    built.add_argument("--output", type=Path, default=Path("exp/benchmark"), help="folder (default: exp/benchmark)")
    return built


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(lambda: _main(parser().parse_intermixed_args(argv)), "no measurements were saved")


def _main(options: argparse.Namespace) -> None:
    """Checks the options, then imports and calls what they ask for: torch takes seconds."""
    _check(options)
    check_writable(options.output)
    cuda, changes = options.device == "cuda", tuple(options.paths)
    if options.check:
        from distiller.steps.correctness import check_device

        methods = tuple(options.train or ("star", "skill"))
        check_device(methods, options.seconds or 4.0, options.threads, options.device, options.output)
    elif options.loop is not None:
        from distiller.steps.loop import LoopSetting, benchmark_loop

        loop = LoopSetting(options.loop, options.hours, options.threads, options.device, changes)
        benchmark_loop(options.train, loop, options.output)
    elif options.train:
        from distiller.steps.training import TrainSetting, benchmark_training

        seconds = options.seconds or (14.375 if cuda else 8.0)
        sizes = tuple(options.batches or ((8, 32) if cuda else (2,)))
        setting = TrainSetting(seconds, sizes, options.threads, options.rounds, options.device, changes)
        benchmark_training(options.train, setting, options.output)
    elif options.long is not None:
        from distiller.benchmarks.long import LongSetting, benchmark_long

        setting = LongSetting(options.long, options.chunk, options.overlap, options.threads, options.device)
        benchmark_long(options.paths, setting, options.output)
    else:
        from distiller.benchmarks.inference import Setting, benchmark

        seconds = options.seconds or 10.0
        setting = Setting(seconds, options.batches or [1, 8], options.threads, options.rounds, options.device)
        benchmark(options.paths, setting, options.output)


def _check(options: argparse.Namespace) -> None:
    if options.train and not all("=" in path for path in options.paths):
        raise UserError("give PATHs, or --train METHODS, not both")
    if options.check and (options.paths or options.loop is not None or options.long is not None):
        raise UserError("--check can only be combined with --train, --seconds, --threads, --device and --output")
    if not (options.paths or options.train or options.check):
        raise UserError("the following arguments are required: PATH")
    if options.loop is not None and not options.train:
        raise UserError("--loop needs --train METHODS")
    if options.train and options.long is not None:
        raise UserError("give --train METHODS or --long SECONDS, not both")
    for method in options.train:
        require(method in ("star", "skill"), "--train", method, one_of(method, ["star", "skill"]))
    for name, (low, high) in LIMITS.items():
        value = getattr(options, name)
        require(value is None or low <= value <= high, f"--{name}", value, f"from {low} to {high}")
    for size in options.batches or []:
        require(1 <= size <= 1024, "--batches", size, "sizes from 1 to 1024")


if __name__ == "__main__":
    sys.exit(main())
