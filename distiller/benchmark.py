#!/usr/bin/env python
"""What encoders cost here: parameters, multiply-accumulates, file size, real-time factor, memory, side by side."""

import sys
from pathlib import Path

if __name__ == "__main__":  # runs uninstalled and from any directory; distiller/ itself is no place to import from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import csv
import shlex
from collections.abc import Sequence
from typing import Any

from distiller.common.command import Parser, run_command
from distiller.common.files import check_writable, writing
from upstream.errors import UserError, one_of, require

EPILOG = """\
examples:
  python distiller/benchmark.py exp/star/student exp/star/student.onnx exp/star/student-int8.onnx
  python distiller/benchmark.py transformers:facebook/hubert-base-ls960 facebook/hubert-base-ls960 exp/star-960h/student
  python distiller/benchmark.py exp/star/student --threads 4 --batches 1,8,32 --device cuda

  python distiller/benchmark.py transformers:random:hubert-base random:hubert-base random:starhubert random:skill
  python distiller/benchmark.py --train star,skill --threads 2
  python distiller/benchmark.py exp/star/student --long 600

PATH is a student folder, any checkpoint that upstream.checkpoint.load opens, an ONNX file of distiller/export.py, or
transformers:PATH for a folder or hub name run by `transformers` itself; random:hubert-base, random:starhubert and
random:skill are those shapes with random weights. Speed-ups are over the first PATH.

--train measures optimiser steps at paper scale instead, against the rate of matrix products; --long what chunks with
overlap make of a long wav, against the whole.
"""


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """
    Raises:
        UserError: an option out of range.
    """
    parser = Parser(prog="distiller/benchmark.py", description=__doc__, epilog=EPILOG)
    parser.add_argument("paths", metavar="PATH", nargs="*")
    parser.add_argument("--train", metavar="METHODS", help="training steps of star, skill, or star,skill")
    parser.add_argument("--long", type=float, metavar="SECONDS", help="a wav so long, in chunks and whole")
    parser.add_argument("--chunk", type=float, default=30.0, help="seconds of a chunk (30)")
    parser.add_argument("--overlap", type=float, default=5.0, help="seconds of context beside it (5)")
    parser.add_argument("--seconds", type=float, help="of audio per wav (10; 8 with --train)")
    parser.add_argument("--batches", default="1,8", help="batch sizes (1,8)")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (1)")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each, the median counts (7)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, default=Path("exp/benchmark"), help="folder for benchmark.csv and .png")
    options = parser.parse_args(argv)
    if bool(options.paths) == bool(options.train):
        raise UserError(
            "give PATHs, or --train METHODS, not both"
            if options.paths
            else "the following arguments are required: PATH"
        )
    if options.device != "cpu" and (options.train or options.long is not None):
        raise UserError(f"--{'train' if options.train else 'long'} measures on the CPU: leave out --device cuda")
    options.seconds = options.seconds if options.seconds is not None else 8.0 if options.train else 10.0
    options.train = tuple((options.train or "").split(",")) if options.train else ()
    for method in options.train:
        require(method in ("star", "skill"), "--train", method, one_of(method, ["star", "skill"]))
    try:
        options.batches = tuple(int(size) for size in options.batches.split(","))
    except ValueError:
        raise UserError(f"--batches is '{options.batches}', not numbers with commas between them") from None
    limits = {"seconds": (0.1, 600), "threads": (1, 1024), "rounds": (1, 1000), "long": (1, 36_000)}
    limits |= {"chunk": (0.1, 3600), "overlap": (0, 600)}
    for name, (low, high) in limits.items():
        if getattr(options, name) is not None and not low <= getattr(options, name) <= high:
            raise UserError(f"--{name} is {getattr(options, name)}; allowed is {low} to {high}")
    if not all(1 <= size <= 1024 for size in options.batches):
        raise UserError(f"--batches is {','.join(map(str, options.batches))}; allowed are sizes from 1 to 1024")
    return options


def benchmark(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure, print the table, write benchmark.csv and benchmark.png; returns the rows.

    Raises:
        UserError: no GPU where one is asked for, or a path that cannot be opened.
    """
    import torch

    from distiller.benchmarks.inference import Setting, measure

    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda, but this machine has only a cpu")
    setting = Setting(options.seconds, options.batches, options.threads, options.rounds, options.device)
    measured = measure(options.paths, setting)
    rows = rows_of(measured, setting)
    print_table(measured, setting)
    write(rows, options.output)
    return rows


def benchmark_training(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Training steps: prints the table, writes train.csv and train.png; returns the rows."""
    from distiller.benchmarks.training import TrainSetting, draw_steps, measure_steps, print_steps, rows_of

    setting = TrainSetting(seconds=options.seconds, threads=options.threads, rounds=options.rounds)
    measured = measure_steps(options.train, setting)
    print_steps(measured, setting)
    draw_steps(measured, options.output / "train.png")
    return write_table(rows_of(measured, setting), options.output / "train.csv")


def benchmark_long(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Long wavs in chunks against the whole: prints the rows, writes long.csv; returns the rows."""
    from distiller.benchmarks.long import LongSetting, measure_long

    setting = LongSetting(options.long, options.chunk, options.overlap, options.threads)
    rows = measure_long(options.paths, setting)
    for row in rows:
        print(
            f"{row['model']}: {options.long:g} s in chunks of {options.chunk:g} s with {options.overlap:g} s of "
            f"overlap take {row['chunks_mb']:.0f} MB and {row['chunks_seconds']:.1f} s, whole "
            f"{row['whole_mb']:.0f} MB and {row['whole_seconds']:.1f} s ({row['loaded_mb']:.0f} MB before); relative "
            f"error {row['largest_error']:.2g} at worst, {row['last_error']:.2g} of the last hidden state"
        )
    return write_table(rows, options.output / "long.csv")


def write_table(rows: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """The rows with where they were measured and how, as CSV; returns them."""
    rows = [row | origin() for row in rows]
    with writing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"{path} written")
    return rows


def origin() -> dict[str, str]:
    """Columns of every row: machine, torch's version, commit and command line."""
    import torch

    from distiller.reports import report

    where = {"machine": report.machine(), "torch": torch.__version__, "commit": report.commit()}
    return where | {"command": shlex.join(["python", "distiller/benchmark.py", *sys.argv[1:]])}


def rows_of(measured: Sequence[Any], setting: Any) -> list[dict[str, Any]]:
    """A row of benchmark.csv for every encoder and batch size."""
    return [
        {
            "model": one.name,
            "kind": one.kind,
            "device": one.device,
            "parameters": one.parameters,
            "macs_per_second": one.macs_per_second,
            "file_mb": one.file_mb and round(one.file_mb, 2),
            "batch": batch,
            "real_time_factor": round(factor, 6),
            "speed_up": round(measured[0].real_time_factor[batch] / factor, 3),
            "peak_mb": round(one.peak_mb, 1),
            "seconds": setting.seconds,
            "threads": setting.threads,
            "rounds": setting.rounds,
            **origin(),
        }
        for one in measured
        for batch, factor in one.real_time_factor.items()
    ]


def print_table(measured: Sequence[Any], setting: Any) -> None:
    """A row for each encoder; RTF: seconds per second of audio, speed-up: over the first, at the first batch size."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        box=box.SIMPLE, caption=f"{setting.seconds:g} s of audio, {setting.threads} thread(s), {setting.device}"
    )
    table.add_column("model", overflow="fold")
    for name in (
        "M parameters",
        "G MACs/s",
        "file MB",
        *(f"RTF x{size}" for size in setting.batches),
        "speed-up",
        "peak MB",
    ):
        table.add_column(name, justify="right")
    for one in measured:
        first = setting.batches[0]
        table.add_row(
            one.name,
            "-" if one.parameters is None else f"{one.parameters / 1e6:.2f}",
            "-" if one.macs_per_second is None else f"{one.macs_per_second / 1e9:.3f}",
            "-" if one.file_mb is None else f"{one.file_mb:.1f}",
            *(f"{one.real_time_factor[size]:.4f}" for size in setting.batches),
            f"{measured[0].real_time_factor[first] / one.real_time_factor[first]:.2f}",
            f"{one.peak_mb:.0f}",
        )
    Console().print(table)


def write(rows: list[dict[str, Any]], output: Path) -> None:
    """benchmark.csv, and benchmark.png with a bar of real-time factor for every row."""
    from matplotlib import pyplot as plt

    from distiller.common.plotting import save_figure

    write_table(rows, output / "benchmark.csv")
    sizes = sorted({row["batch"] for row in rows})
    names = list(dict.fromkeys(row["model"] for row in rows))
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.5 * len(names)), layout="constrained")
    height = 0.8 / len(sizes)
    for number, size in enumerate(sizes):
        factors = [
            next(row["real_time_factor"] for row in rows if (row["model"], row["batch"]) == (name, size))
            for name in names
        ]
        axes.barh([place + number * height for place in range(len(names))], factors, height, label=f"batch of {size}")
    axes.set_yticks([place + 0.4 - height / 2 for place in range(len(names))], names)
    axes.invert_yaxis()
    axes.set(
        xlabel="real-time factor (seconds of work per second of audio)",
        title=f"{rows[0]['device']}, {rows[0]['threads']} thread(s)",
    )
    axes.grid(axis="x", alpha=0.25)
    axes.legend(frameon=False)
    save_figure(figure, output / "benchmark.png")


def carry_out(options: argparse.Namespace) -> None:
    if options.train:
        measure = benchmark_training
    elif options.long is not None:
        measure = benchmark_long
    else:
        measure = benchmark
    check_writable(options.output)
    measure(options)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0; 2 for a mistake of the user's, 130 or 143 when interrupted, with one line on stderr."""
    return run_command(lambda: carry_out(parse(argv)), "nothing is kept of what was measured")


if __name__ == "__main__":
    sys.exit(main())
