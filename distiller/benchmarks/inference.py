"""Encoders side by side: each in its own process, running alternately, so that all see the same load."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch

from distiller.benchmarks.encoders import open_target, weights_mb
from distiller.benchmarks.processes import fresh_process, require_device
from distiller.benchmarks.tables import print_table, three, write_table
from distiller.common.progress import progress
from distiller.common.provenance import peak_memory_mb
from upstream.config import SAMPLE_RATE
from upstream.cost import count_macs

Row = dict[str, Any]  # of benchmark.csv


@dataclass(frozen=True)
class Setting:
    """The input of every encoder, and the number of runs."""

    seconds: float = 10.0  # of audio per wav
    batches: Sequence[int] = (1, 8)  # sizes
    threads: int = 1
    rounds: int = 7
    device: str = "cpu"

    @property
    def samples(self) -> int:
        """Samples of a wav."""
        return int(self.seconds * SAMPLE_RATE)


opened = cache(open_target)  # each process opens its encoder once


def benchmark(targets: Sequence[str], setting: Setting, output: Path) -> None:
    """Measure, print a table, write benchmark.csv and benchmark.png.

    Raises:
        UserError: there is no GPU for `device` cuda, or as `measure`.
    """
    require_device(setting.device)
    rows = measure(targets, setting)
    show(rows, setting)
    write_table(output / "benchmark.csv", rows)
    draw(output / "benchmark.png", rows, setting)


def measure(targets: Sequence[str], setting: Setting) -> list[Row]:
    """A row for every encoder and batch size; speed-ups are over the first encoder at the same size.

    real_time_factor: median seconds of work per second of audio; peak_mb: memory of the whole process, or on a GPU the
    memory that torch allocated there.

    Raises:
        UserError: a target cannot be opened, or does not run on the device.
    """
    with ExitStack() as stack:
        calls = [stack.enter_context(fresh_process(target)) for target in targets]
        known = [call(describe, target, setting) for call, target in zip(calls, targets, strict=True)]
        times: list[dict[int, list[float]]] = [{size: [] for size in setting.batches} for _ in targets]
        turns = list(product(range(setting.rounds + 1), setting.batches))
        for turn, size in progress(turns, "Measuring"):
            for call, target, taken in zip(calls, targets, times, strict=True):
                seconds = call(run_batch, target, setting, size)
                if turn:  # the first is warm-up
                    taken[size].append(seconds)
        peaks = [call(peak_memory_mb, setting.device) for call in calls]
    rows: list[Row] = []
    settings = {"seconds": setting.seconds, "threads": setting.threads, "rounds": setting.rounds}
    for columns, taken, peak_mb in zip(known, times, peaks, strict=True):
        for size in setting.batches:
            factor, first = (median(of[size]) / (size * setting.seconds) for of in (taken, times[0]))
            speed = {"real_time_factor": factor, "speed_up": first / factor}
            rows.append(columns | {"batch": size} | speed | {"peak_mb": peak_mb} | settings)
    return rows


def describe(target: str, setting: Setting) -> Row:
    """What is known about an encoder before it runs; called first in its process."""
    torch.set_num_threads(setting.threads)
    encoder = opened(target, setting.device, setting.threads)
    size_mb = weights_mb(encoder.path)
    return {
        "model": target,
        "kind": encoder.kind,
        "device": setting.device,
        "parameters": encoder.parameters,
        "macs_per_second": encoder.config and count_macs(encoder.config, setting.samples) / setting.seconds,
        "file_mb": size_mb,
    }


@torch.inference_mode()
def run_batch(target: str, setting: Setting, size: int) -> float:
    """Seconds that an encoder takes for a batch, in its process."""
    encoder = opened(target, setting.device, setting.threads)
    waveforms = (0.1 * torch.randn(size, setting.samples)).to(setting.device)
    lengths = torch.full((size,), setting.samples)
    start = time.perf_counter()
    encoder.run(waveforms, lengths)
    if setting.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def show(rows: Sequence[Row], setting: Setting) -> None:
    """A row for each encoder and batch size. RTF: seconds of work per second of audio; speed-up: at that size."""
    lines = []
    for row in rows:
        cells = [row["parameters"], row["macs_per_second"], row["file_mb"]]
        units = [1e6, 1e9, 1.0]
        known = ["-" if cell is None else three(cell / unit) for cell, unit in zip(cells, units, strict=True)]
        name = [row["model"], *known] if row["batch"] == setting.batches[0] else [""] * (1 + len(known))
        speed = [three(row[key]) for key in ("real_time_factor", "speed_up", "peak_mb")]
        lines.append([*name, str(row["batch"]), *speed])
    titles = ["million\nparam.", "G MACs\n/s", "file\nMB", "batch", "RTF", "speed-\nup", "peak\nMB"]
    print_table(
        "model", titles, lines, f"{setting.seconds:g} s of audio, {setting.threads} thread(s), {setting.device}"
    )


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
