"""Training steps at paper scale, against the time that their multiplications alone would take on this machine, and
against a plain pair of models.

The floor of a step is its floating-point operations over the rate of large matrix products, measured alternately with
the steps, so that a busy machine slows all of them. Teachers have random weights, so nothing is downloaded.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from distiller.benchmarks.processes import fresh_process, require_device
from distiller.benchmarks.tables import print_table, three, write_table
from distiller.common.progress import progress
from distiller.common.provenance import peak_memory_mb
from distiller.steps.step import (
    ELSE,
    KINDS,
    OURS,
    PEER,
    Step,
    TrainSetting,
    matrix_rate,
    operators,
    prepare,
    take_steps,
    teacher_shape,
    work_of,
)
from upstream.config import SAMPLE_RATE, EncoderConfig

Row = dict[str, Any]  # of train.csv
TIMES = ("real_time", "share_of_floor", "step_seconds", "cpu_seconds", "peak_mb")


def benchmark_training(methods: Sequence[str], setting: TrainSetting, output: Path) -> None:
    """Measure steps of each method, ours and the peer's in separate processes; print tables, write train.csv (after
    every micro-batch, so that measurements are not lost) and train.png.

    Raises:
        UserError: there is no such device, or a recipe is refused.
    """
    require_device(setting.device)
    for method in methods:
        setting.recipe(method)
    rows: list[Row] = []
    teacher = teacher_shape(setting.overrides)
    for method in progress(methods, "Measuring"):
        with fresh_process(method) as ours, fresh_process(f"{method}'s peer") as peer:
            for size, padded in micro_batches(setting):
                rows += measure_steps({OURS: ours, PEER: peer}, method, size, padded, setting, teacher)
                write_table(output / "train.csv", [written(row) for row in rows], tell=False)
    print_steps(rows, setting)
    draw_steps(output / "train.png", [row for row in rows if row["operators"]])
    print(f"{output / 'train.csv'} written")


def micro_batches(setting: TrainSetting) -> list[tuple[int, bool]]:
    """(utterances, padded): every size; on a GPU padded first, as in training, where masks need other kernels."""
    both = (True, False) if setting.device == "cuda" else (False,)
    return [(size, padded) for padded in both for size in setting.batches if size > 1 or not padded]


def measure_steps(
    calls: dict[str, Callable[..., Any]],
    method: str,
    utterances: int,
    padded: bool,
    setting: TrainSetting,
    teacher: EncoderConfig,
) -> list[Row]:
    """A row for our step and one for the peer's, measured alternately; times are medians.

    cpu_seconds: of all threads together; share_of_floor: of the floor's speed, 1 would be only matrix products.
    A step that does not fit into the GPU's memory has no times.
    """
    steps = {who: Step(who, method, utterances, padded, setting, teacher) for who in calls}
    running = {who: call for who, call in calls.items() if call(prepare, steps[who])}
    times: dict[str, list[tuple[float, float]]] = {who: [] for who in calls}
    rates: list[float] = []
    for _ in range(setting.rounds):
        rates.append(calls[OURS](matrix_rate, setting.device))
        for who, call in running.items():
            times[who].append(call(take_steps, steps[who]))
    work, parameters = calls[OURS](work_of, steps[OURS])
    rate, audio = median(rates), int(steps[OURS].lengths().sum()) / SAMPLE_RATE
    rows: list[Row] = []
    for who, call in calls.items():
        row: Row = {"method": method, "of": who, "device": setting.device, "utterances": utterances, "padded": padded}
        row |= {"seconds": setting.seconds} | dict.fromkeys(TIMES) | {"floor_seconds": work / rate, "gflop": work}
        row |= {"matrix_gflop_per_second": rate, "student_parameters": parameters, "operators": {}}
        if who in running:
            seconds, cpu = (median(values) for values in zip(*times[who], strict=True))
            measured = (audio / seconds, work / rate / seconds, seconds, cpu, call(peak_memory_mb, setting.device))
            row |= dict(zip(TIMES, measured, strict=True))
        if who in running and who == OURS:
            row["operators"] = call(operators, steps[who])  # after the peak: the profiler needs memory too
        row |= {"precision": setting.recipe(method).trainer.precision, "overrides": " ".join(setting.overrides)}
        rows.append(row | {"threads": setting.threads, "rounds": setting.rounds})
    return rows


def written(row: Row) -> Row:
    """A row in the form of train.csv: the shares of the operators as JSON."""
    return row | {"operators": json.dumps({kind: round(share, 4) for kind, share in row["operators"].items()})}


def name_of(row: Row) -> str:
    return f"{row['method']} {row['utterances']}{' padded' if row['padded'] else ''}"


def print_steps(rows: Sequence[Row], setting: TrainSetting) -> None:
    """A table of speed and memory, and one of where our steps' time goes."""
    lines = [[name_of(row), row["of"], *(three(row[column]) for column in TIMES)] for row in rows]
    precision = ", ".join(dict.fromkeys(row["precision"] for row in rows))
    rate = three(median(row["matrix_gflop_per_second"] for row in rows) / 1000)
    caption = (
        f"{setting.seconds:g} s each, {setting.device}, {setting.threads} thread(s), {precision}; share: of the speed "
        f"of matrix products ({rate} TFLOP/s); medians"
    )
    print_table("step", ["", "x real\ntime", "share", "seconds", "CPU\nseconds", "peak\nMB"], lines, caption)
    shown = [row for row in rows if row["operators"]]
    for start in range(0, len(shown), 4):  # as many columns as 80 characters hold
        some = shown[start : start + 4]
        shares = [[kind, *(three(100 * row["operators"].get(kind, 0.0)) for row in some)] for kind in (*KINDS, ELSE)]
        titles = [name_of(row).replace(" padded", "\npadded") for row in some]
        print_table("% of our time", titles, shares, "")


def draw_steps(path: Path, rows: Sequence[Row]) -> None:
    """Where each step's time goes, beside the time that its multiplications alone would take."""
    from matplotlib import pyplot as plt  # not at the top: the measured process would import it too

    from distiller.common.plotting import save_figure

    figure, axes = plt.subplots(figsize=(9, 1.6 + 0.8 * len(rows)), layout="constrained")
    done = [0.0] * len(rows)
    for kind in (*KINDS, ELSE):
        widths = [row["operators"].get(kind, 0.0) * row["step_seconds"] for row in rows]
        axes.barh([name_of(row) for row in rows], widths, 0.6, done, label=kind)
        done = [start + width for start, width in zip(done, widths, strict=True)]
    for place, row in enumerate(rows):
        axes.vlines(row["floor_seconds"], place - 0.4, place + 0.4, "black", "dashed")
    axes.invert_yaxis()
    axes.set(xlabel="seconds of a step (dashed: its multiplications at the rate of matrix products)")
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.25))
    save_figure(figure, path)
