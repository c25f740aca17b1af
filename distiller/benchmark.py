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

from distiller.run import Parser, complain
from upstream.errors import UserError

EPILOG = """\
examples:
  python distiller/benchmark.py exp/star/student exp/star/student.onnx exp/star/student-int8.onnx
  python distiller/benchmark.py transformers:facebook/hubert-base-ls960 facebook/hubert-base-ls960 exp/star-960h/student
  python distiller/benchmark.py exp/star/student --threads 4 --batches 1,8,32 --device cuda

PATH is a student folder, any checkpoint that upstream.checkpoint.load opens, an ONNX file of distiller/export.py, or
transformers:PATH for a folder or hub name run by `transformers` itself. Speed-ups are over the first PATH.
"""
COLUMNS: tuple[str, ...] = (
    "model",
    "kind",
    "device",
    "parameters",
    "macs_per_second",
    "file_mb",
    "batch",
    "real_time_factor",
    "speed_up",
    "peak_mb",
)
COLUMNS += ("seconds", "threads", "rounds", "machine", "torch", "commit", "command")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """
    Raises:
        UserError: an option out of range.
    """
    parser = Parser(
        prog="distiller/benchmark.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("paths", metavar="PATH", nargs="+")
    parser.add_argument("--seconds", type=float, default=10.0, help="of audio per wav (10)")
    parser.add_argument("--batches", default="1,8", help="batch sizes (1,8)")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (1)")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each, the median counts (7)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, default=Path("exp/benchmark"), help="folder for benchmark.csv and .png")
    options = parser.parse_args(argv)
    try:
        options.batches = tuple(int(size) for size in options.batches.split(","))
    except ValueError:
        raise UserError(f"--batches is '{options.batches}', not numbers with commas between them") from None
    limits = {"seconds": (0.1, 600), "threads": (1, 1024), "rounds": (1, 1000)}
    for name, (low, high) in limits.items():
        if not low <= getattr(options, name) <= high:
            raise UserError(f"--{name} is {getattr(options, name)}; allowed is {low} to {high}")
    if not all(1 <= size <= 1024 for size in options.batches):
        raise UserError(f"--batches is {','.join(map(str, options.batches))}; allowed are sizes from 1 to 1024")
    return options


def benchmark(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure, print the table, write benchmark.csv and benchmark.png; returns the rows."""
    import torch

    from distiller.timing import Setting, measure

    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda, but this machine has only a cpu")
    setting = Setting(options.seconds, options.batches, options.threads, options.rounds, options.device)
    measured = measure(options.paths, setting)
    rows = rows_of(measured, setting)
    print_table(measured, setting)
    write(rows, options.output)
    return rows


def rows_of(measured: Sequence[Any], setting: Any) -> list[dict[str, Any]]:
    """A row of benchmark.csv for every encoder and batch size."""
    import torch

    from distiller import report

    where = {"machine": report.machine(), "torch": torch.__version__, "commit": report.commit()}
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
            **where,
            "command": shlex.join(["python", "distiller/benchmark.py", *sys.argv[1:]]),
        }
        for one in measured
        for batch, factor in one.real_time_factor.items()
    ]


def print_table(measured: Sequence[Any], setting: Any) -> None:
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
    from distiller.figures import plt, save_figure
    from distiller.files import writing

    with writing(output / "benchmark.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
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
    print(f"{output / 'benchmark.csv'} and benchmark.png")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 for a mistake of the user's, with one line on stderr."""
    try:
        benchmark(parse(argv))
    except UserError as error:
        complain(f"error: {' '.join(str(error).split())}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
