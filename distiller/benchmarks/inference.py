"""Encoders side by side: each in its own process, running in turns, so that all meet the same machine."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from distiller.benchmarks.encoders import open_target, weights_mb
from distiller.benchmarks.processes import process_of, receive
from distiller.benchmarks.tables import write_table
from distiller.common.progress import progress
from distiller.common.provenance import peak_memory_mb
from upstream.config import SAMPLE_RATE
from upstream.cost import count_macs
from upstream.errors import UserError

Row = dict[str, Any]  # of benchmark.csv


@dataclass(frozen=True)
class Setting:
    """What every encoder runs, and how often."""

    seconds: float = 10.0  # of audio per wav
    batches: Sequence[int] = (1, 8)  # sizes
    threads: int = 1
    rounds: int = 7
    device: str = "cpu"


def benchmark(targets: Sequence[str], setting: Setting, output: Path) -> None:
    """Measure, print a table, write benchmark.csv and benchmark.png.

    Raises:
        UserError: there is no GPU for `device` cuda, or as `measure`.
    """
    if setting.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda, but this machine has only a cpu")
    rows = measure(targets, setting)
    print_table(rows, setting)
    write_table(output / "benchmark.csv", rows)
    draw(output / "benchmark.png", rows, setting)


def measure(targets: Sequence[str], setting: Setting) -> list[Row]:
    """A row for every encoder and batch size; speed-ups are over the first encoder at the same size.

    real_time_factor: median seconds of work per second of audio; peak_mb: memory of the whole process, on a GPU what
    torch allocated there.

    Raises:
        UserError: a target cannot be opened, or does not run on the device.
    """
    with ExitStack() as stack:
        connections = [stack.enter_context(process_of(_work, target, setting)) for target in targets]
        known = [receive(connection, target) for connection, target in zip(connections, targets, strict=True)]
        times = _in_turns(connections, targets, setting)
        rows: list[Row] = []
        settings = {"seconds": setting.seconds, "threads": setting.threads, "rounds": setting.rounds}
        for connection, target, columns, taken in zip(connections, targets, known, times, strict=True):
            connection.send(None)
            peak_mb = receive(connection, target)
            for size in setting.batches:
                factor, first = (median(of[size]) / (size * setting.seconds) for of in (taken, times[0]))
                speed = {"real_time_factor": round(factor, 6), "speed_up": round(first / factor, 3)}
                rows.append(columns | {"batch": size} | speed | {"peak_mb": round(peak_mb, 1)} | settings)
    return rows


def _in_turns(
    connections: Sequence[Connection], targets: Sequence[str], setting: Setting
) -> list[dict[int, list[float]]]:
    """Seconds of every round by batch size, for each encoder."""
    times: list[dict[int, list[float]]] = [{size: [] for size in setting.batches} for _ in connections]
    turns = [(turn, size) for turn in range(setting.rounds + 1) for size in setting.batches]
    for turn, size in progress(turns, "Measuring"):
        for connection, target, taken in zip(connections, targets, times, strict=True):
            connection.send(size)
            seconds = receive(connection, target)
            if turn:  # the first is warm-up
                taken[size].append(seconds)
    return times


def _work(connection: Connection, target: str, setting: Setting) -> None:
    """The process of one encoder: open it, then run a batch of each size that is received, until None comes."""
    try:
        torch.set_num_threads(setting.threads)
        encoder = open_target(target, setting.device, setting.threads)
        samples = int(setting.seconds * SAMPLE_RATE)
        size_mb = weights_mb(encoder.path)
        connection.send(
            {
                "model": target,
                "kind": encoder.kind,
                "device": setting.device,
                "parameters": encoder.parameters,
                "macs_per_second": encoder.config and count_macs(encoder.config, samples) / setting.seconds,
                "file_mb": size_mb and round(size_mb, 2),
            }
        )
        generator = torch.Generator().manual_seed(0)
        while (size := connection.recv()) is not None:
            waveforms = (0.1 * torch.randn(size, samples, generator=generator)).to(setting.device)
            lengths = torch.full((size,), samples)
            start = time.perf_counter()
            with torch.inference_mode():
                encoder.run(waveforms, lengths)
            if setting.device == "cuda":
                torch.cuda.synchronize()
            connection.send(time.perf_counter() - start)
        connection.send(peak_memory_mb(setting.device))
    except UserError as error:
        connection.send(error)
    except EOFError:
        pass  # the parent ended


def print_table(rows: Sequence[Row], setting: Setting) -> None:
    """A row for each encoder. RTF: seconds of work per second of audio; speed-up: at the first batch size."""
    caption = f"{setting.seconds:g} s of audio, {setting.threads} thread(s), {setting.device}"
    table = Table(box=box.SIMPLE, caption=caption)
    table.add_column("model", overflow="fold")
    factors = [f"RTF x{size}" for size in setting.batches]
    for title in ("M parameters", "G MACs/s", "file MB", *factors, "speed-up", "peak MB"):
        table.add_column(title, justify="right")
    for start in range(0, len(rows), len(setting.batches)):
        encoder = rows[start : start + len(setting.batches)]
        first = encoder[0]
        table.add_row(
            first["model"],
            "-" if first["parameters"] is None else f"{first['parameters'] / 1e6:.2f}",
            "-" if first["macs_per_second"] is None else f"{first['macs_per_second'] / 1e9:.3f}",
            "-" if first["file_mb"] is None else f"{first['file_mb']:.1f}",
            *(f"{row['real_time_factor']:.4f}" for row in encoder),
            f"{first['speed_up']:.2f}",
            f"{first['peak_mb']:.0f}",
        )
    Console().print(table)


def draw(path: Path, rows: Sequence[Row], setting: Setting) -> None:
    """A bar of the real-time factor for every row."""
    from matplotlib import pyplot as plt  # not at the top: the measured process would import it too

    from distiller.common.plotting import save_figure

    names = list(dict.fromkeys(row["model"] for row in rows))
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.5 * len(names)), layout="constrained")
    height = 0.8 / len(setting.batches)
    for number, size in enumerate(sorted(setting.batches)):
        factors = {row["model"]: row["real_time_factor"] for row in rows if row["batch"] == size}
        places = [place + number * height for place in range(len(names))]
        axes.barh(places, [factors[name] for name in names], height, label=f"batch of {size}")
    axes.set_yticks([place + 0.4 - height / 2 for place in range(len(names))], names)
    axes.invert_yaxis()
    axes.set_xlabel("real-time factor (seconds of work per second of audio)")
    axes.set_title(f"{setting.device}, {setting.threads} thread(s)")
    axes.grid(axis="x", alpha=0.25)
    axes.legend(frameon=False)
    save_figure(figure, path)
