"""Training steps at paper scale, against the time that their multiplications alone would take on this machine.

The floor of a step is its floating-point operations over the rate of large matrix products, measured in turns with the
steps, so that a busy machine slows both. Teachers have random weights, so nothing is downloaded.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from distiller.audio.batch import Batch
from distiller.benchmarks.encoders import HUBERT_BASE
from distiller.benchmarks.processes import fresh_process
from distiller.benchmarks.tables import print_table, write_table
from distiller.common.progress import progress
from distiller.common.provenance import parameter_count, peak_memory_mb
from distiller.distillation.distillation_module import Distillation, JointDistillation
from distiller.objectives.registry import build
from distiller.recipes.recipe import load_recipe
from distiller.students.build import build_student
from distiller.students.gates import GatedEncoder
from distiller.students.lagrangian import SparsityLagrangian
from upstream.config import SAMPLE_RATE, EncoderConfig
from upstream.cost import count_macs
from upstream.encoder import SpeechEncoder

MATRIX = 2048  # rows and columns of the products whose rate makes the floor
OVERRIDES = {  # of each method's recipe; the number of SKILL's clusters hardly matters
    "star": [],
    "skill": ["objective.clusters=[[0],[1,2,3],[4,5,6,7],[8,9,10],[11,12]]"],
}
STEPS = 25_000  # of the whole run, for schedules
# what the loss adds to the encoders' multiplications: STaR's step at paper scale takes 435 GFLOP, 427 of them for the
# encoders
LOSS = {"star": 435 / 427}
KINDS = {  # operators by what they do; the first kind with a part in the operator's name counts
    "attention": ("attention", "softmax"),
    "random numbers": ("bernoulli", "random", "uniform", "dropout"),
    "convolutions": ("conv",),
    "matrix products": ("mm", "linear", "dot", "GramDifference", "PreciseProduct"),
    "norms": ("norm",),
    "GELU": ("gelu",),
    "optimiser": ("adam", "sqrt", "addcmul", "addcdiv", "lerp"),
    "copies": ("copy", "cat", "stack", "clone", "fill", "zero", "contiguous", "empty", "resize"),
}
ELSE = "element-wise and else"
SHOWN = (  # rows of the printed table
    ("share of the floor's speed", "share_of_floor", "{:.3f}"),
    ("seconds", "step_seconds", "{:.2f}"),
    ("CPU seconds", "cpu_seconds", "{:.2f}"),
    ("matrix products, GFLOP/s", "matrix_gflop_per_second", "{:.0f}"),
    ("peak memory, MB", "peak_mb", "{:.0f}"),
)
DIGITS = {"gflop": 1, "matrix_gflop_per_second": 1, "peak_mb": None}  # after the point in train.csv; 4 in others

Row = dict[str, Any]


@dataclass(frozen=True)
class TrainSetting:
    """The audio of a step, and how often it is taken."""

    seconds: float = 8.0
    utterances: int = 2
    threads: int = 2
    rounds: int = 7


def distillation(method: str, teacher: SpeechEncoder) -> Distillation:
    """As the recipe for 100 h: STaR's student of 22.3 M parameters, or a copy of the teacher with gates for SKILL."""
    recipe = load_recipe(f"{method}-hubert-100h", ["corpus.path=none", *OVERRIDES[method]])
    student = build_student(recipe.student, teacher)
    objective = build(recipe.objective, teacher.config, student.config)
    if recipe.pruning is None:
        return Distillation(teacher, student, objective, recipe)
    lagrangian = SparsityLagrangian(recipe.pruning, student.config, parameter_count(teacher), STEPS)
    return JointDistillation(teacher, GatedEncoder(student, recipe.pruning.drops), objective, recipe, lagrangian)


def benchmark_training(methods: Sequence[str], setting: TrainSetting, output: Path) -> None:
    """Measure a step of each method, each in a fresh process; print a table, write train.csv and train.png."""
    rows: list[Row] = []
    for method in progress(methods, "Measuring"):
        with fresh_process(method) as call:
            rows.append(call(measure_step, method, setting, HUBERT_BASE))
    print_steps(rows, setting)
    draw_steps(output / "train.png", rows)
    write_table(output / "train.csv", [written(row) for row in rows])


def measure_step(method: str, setting: TrainSetting, teacher: EncoderConfig) -> Row:
    """One method's step in this process; times are medians over the rounds, cpu_seconds those of all threads together.

    share_of_floor: of the floor's speed; 1 would be nothing but matrix products.
    """
    torch.set_num_threads(setting.threads)
    torch.manual_seed(0)
    module = distillation(method, SpeechEncoder(teacher))
    step = step_of(module, setting)
    student = module.student.encoder if isinstance(module.student, GatedEncoder) else module.student
    assert isinstance(student, SpeechEncoder)
    step()  # warm-up: optimiser states, kernels
    times, cpu_times, rates = [], [], []
    for _ in range(setting.rounds):
        rates.append(matrix_rate())
        start, cpu_start = time.perf_counter(), time.process_time()
        step()
        times.append(time.perf_counter() - start)
        cpu_times.append(time.process_time() - cpu_start)
    peak_mb = peak_memory_mb()  # before the profiler's own
    work = LOSS.get(method, 1.0) * gflop(teacher, student.config, setting)
    floor = work / median(rates)
    return {
        "method": method,
        "share_of_floor": floor / median(times),
        "step_seconds": median(times),
        "cpu_seconds": median(cpu_times),
        "floor_seconds": floor,
        "gflop": work,
        "matrix_gflop_per_second": median(rates),
        "peak_mb": peak_mb,
        "student_parameters": parameter_count(student),
        **vars(setting),
        "operators": operators(step),
    }


def step_of(module: Distillation, setting: TrainSetting) -> Callable[[], None]:
    """A step as the training loop takes it: both forward passes, loss, backward pass, clipping, optimiser."""
    samples = int(setting.seconds * SAMPLE_RATE)
    waveforms = 0.1 * torch.randn(setting.utterances, samples)
    lengths = torch.full((setting.utterances,), samples)
    batch = Batch(waveforms, lengths, [], [], [])
    module.steps = STEPS
    optimizer = module.optimizer()
    counts = {"utterance": torch.tensor(float(len(lengths))), "frame": module.frame_lengths(batch).sum().float()}
    module.student.train()

    def step() -> None:
        optimizer.zero_grad()
        penalty, _ = module.penalty()
        loss, _ = module(batch, counts)
        (loss + penalty).backward()
        nn.utils.clip_grad_norm_([p for p in module.parameters() if p.grad is not None], 10.0)
        optimizer.step()

    return step


def gflop(teacher: EncoderConfig, student: EncoderConfig, setting: TrainSetting) -> float:
    """10^9 operations of the encoders in a step: the teacher's forward pass, the student's, and twice that backward."""
    samples = int(setting.seconds * SAMPLE_RATE)
    macs = count_macs(teacher, samples) + 3 * count_macs(student, samples)
    return 2 * macs * setting.utterances / 1e9


def matrix_rate() -> float:
    """Rate of a large fp32 matrix product, in 10^9 floating-point operations per second."""
    first, second = torch.ones(MATRIX, MATRIX), torch.ones(MATRIX, MATRIX)
    start = time.perf_counter()
    torch.mm(first, second)
    return 2 * MATRIX**3 / (time.perf_counter() - start) / 1e9


def operators(step: Callable[[], Any]) -> dict[str, float]:
    """Where a step's time goes: kind of operator -> share, largest first."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    taken: dict[str, float] = {}
    for event in profiler.key_averages():
        kind = next((kind for kind, parts in KINDS.items() if any(part in event.key for part in parts)), ELSE)
        taken[kind] = taken.get(kind, 0.0) + event.self_cpu_time_total
    total = sum(taken.values())
    return {kind: time / total for kind, time in sorted(taken.items(), key=lambda item: -item[1])}


def written(row: Row) -> Row:
    """A row as train.csv has it: numbers rounded, the shares of the operators as JSON."""
    rounded = {key: round(value, DIGITS.get(key, 4)) for key, value in row.items() if isinstance(value, float)}
    shares = {kind: round(share, 4) for kind, share in row["operators"].items()}
    return row | rounded | {"operators": json.dumps(shares)}


def print_steps(rows: Sequence[Row], setting: TrainSetting) -> None:
    lines = [[title, *(form.format(row[column]) for row in rows)] for title, column, form in SHOWN]
    for kind in (*KINDS, ELSE):
        lines.append([kind, *(f"{row['operators'].get(kind, 0.0):.1%}" for row in rows)])
    caption = f"{setting.utterances} x {setting.seconds:g} s, {setting.threads} thread(s), fp32, medians"
    print_table("step", [row["method"] for row in rows], lines, caption)


def draw_steps(path: Path, rows: Sequence[Row]) -> None:
    """Where each step's time goes, beside the time that its multiplications alone would take."""
    from matplotlib import pyplot as plt  # not at the top: the measured process would import it too

    from distiller.common.plotting import save_figure

    figure, axes = plt.subplots(figsize=(9, 1.6 + 0.8 * len(rows)), layout="constrained")
    done = [0.0] * len(rows)
    for kind in (*KINDS, ELSE):
        widths = [row["operators"].get(kind, 0.0) * row["step_seconds"] for row in rows]
        axes.barh([row["method"] for row in rows], widths, 0.6, done, label=kind)
        done = [start + width for start, width in zip(done, widths, strict=True)]
    for place, row in enumerate(rows):
        axes.vlines(row["floor_seconds"], place - 0.4, place + 0.4, "black", "dashed")
    axes.invert_yaxis()
    axes.set(xlabel="seconds of a step (dashed: its multiplications at the rate of matrix products)")
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.25))
    save_figure(figure, path)
