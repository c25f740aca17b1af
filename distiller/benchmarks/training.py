"""Training steps at paper scale, against the time that their multiplications alone would take on this machine.

The floor of a step is its floating-point operations over the rate of large matrix products, measured in turns with the
steps, so that a busy machine slows both. Teachers have random weights: nothing is downloaded.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from distiller.audio.batch import Batch
from distiller.benchmarks.inference import process_of, receive
from distiller.benchmarks.shapes import HUBERT_BASE
from distiller.common.progress import progress
from distiller.common.provenance import peak_memory_mb
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
CLUSTERS = [[0], [1, 2, 3], [4, 5, 6, 7], [8, 9, 10], [11, 12]]  # of SKILL's step; how many costs nothing to speak of
STEPS = 25_000  # of the whole run, for schedules
# what the loss adds to the encoders' multiplications: STaR's whole step at paper scale is put at 435 GFLOP, 427 of them
# the encoders'
LOSS = {"star": 435 / 427}
KINDS = {  # operators by what they do; the first whose part stands in the name counts
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


@dataclass(frozen=True)
class TrainSetting:
    """What a step is made of, and how often it is taken."""

    seconds: float = 8.0
    utterances: int = 2
    threads: int = 2
    rounds: int = 7


@dataclass
class MeasuredStep:
    """One method's row; every time is the median over the rounds."""

    method: str
    gflop: float
    parameters: int  # of the student
    step_seconds: float = 0.0
    cpu_seconds: float = 0.0  # of all threads together
    matrix_gflops: float = 0.0  # rate of the products between the steps, per second
    peak_mb: float = 0.0  # of the whole process
    operators: dict[str, float] = field(default_factory=dict)  # kind -> share of a step's time

    @property
    def share(self) -> float:
        """Of the floor's speed: 1 would be nothing but matrix products."""
        return self.gflop / self.matrix_gflops / self.step_seconds


def star(teacher: SpeechEncoder) -> Distillation:
    """STaR's student of 22.3 M parameters, as the recipe for 100 h trains it."""
    recipe = load_recipe("star-hubert-100h", ["corpus.path=none"])
    student = build_student(recipe.student, teacher)
    return Distillation(teacher, student, build(recipe.objective, teacher.config, student.config), recipe)


def skill(teacher: SpeechEncoder) -> JointDistillation:
    """SKILL's first stage: a copy of the teacher with gates, clusters, the Lagrangian."""
    recipe = load_recipe("skill-hubert-100h", ["corpus.path=none"])
    assert recipe.pruning is not None
    student = build_student(recipe.student, teacher)
    parameters = sum(parameter.numel() for parameter in teacher.parameters())
    pruning = SparsityLagrangian(recipe.pruning, student.config, parameters, STEPS)
    objective = build(replace(recipe.objective, clusters=CLUSTERS), teacher.config, student.config)
    return JointDistillation(teacher, GatedEncoder(student, recipe.pruning.drops), objective, recipe, pruning)


METHODS: dict[str, Callable[[SpeechEncoder], Distillation]] = {"star": star, "skill": skill}


def measure_steps(
    methods: Sequence[str], setting: TrainSetting, teacher: EncoderConfig | None = None
) -> list[MeasuredStep]:
    """A step of each method, each in a fresh process, one after the other; the teacher is HuBERT Base if left out."""
    rows = []
    for method in progress(methods, "Measuring"):
        with process_of(_work, method, setting, teacher or HUBERT_BASE) as connection:
            rows.append(receive(connection, method))
    return rows


def _work(connection: Connection, method: str, setting: TrainSetting, teacher: EncoderConfig) -> None:
    torch.set_num_threads(setting.threads)
    connection.send(measure_step(method, setting, teacher))


def measure_step(method: str, setting: TrainSetting, teacher_config: EncoderConfig) -> MeasuredStep:
    """One method's step in this process."""
    torch.manual_seed(0)
    module = METHODS[method](SpeechEncoder(teacher_config))
    step = step_of(module, setting)
    student = module.student.encoder if isinstance(module.student, GatedEncoder) else module.student
    assert isinstance(student, SpeechEncoder)
    parameters = sum(parameter.numel() for parameter in student.parameters())
    work = LOSS.get(method, 1.0) * gflop(teacher_config, student.config, setting)
    row = MeasuredStep(method, work, parameters)
    step()  # warm-up: optimiser states, kernels
    row.peak_mb = peak_memory_mb("cpu")
    times, cpu_times, rates = [], [], []
    for _ in range(setting.rounds):
        rates.append(matrix_rate())
        start, cpu_start = time.perf_counter(), time.process_time()
        step()
        times.append(time.perf_counter() - start)
        cpu_times.append(time.process_time() - cpu_start)
        row.peak_mb = peak_memory_mb("cpu")
    row.step_seconds, row.cpu_seconds, row.matrix_gflops = median(times), median(cpu_times), median(rates)
    row.operators = operators(step)
    return row


def step_of(module: Distillation, setting: TrainSetting) -> Callable[[], None]:
    """What the training loop does with a batch: both forward passes, loss, backward pass, clipping, optimiser."""
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
    """Of the encoders in a step, in 10^9: the teacher's forward pass, the student's, and twice as much backward."""
    samples = int(setting.seconds * SAMPLE_RATE)
    macs = count_macs(teacher, samples) + 3 * count_macs(student, samples)
    return 2 * macs * setting.utterances / 1e9


def matrix_rate() -> float:
    """Of one large fp32 matrix product, in 10^9 floating-point operations a second."""
    left, right = torch.ones(MATRIX, MATRIX), torch.ones(MATRIX, MATRIX)
    start = time.perf_counter()
    torch.mm(left, right)
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


def rows_of(measured: Sequence[MeasuredStep], setting: TrainSetting) -> list[dict[str, Any]]:
    """A row of train.csv for every method; the shares of its operators in one column, as JSON."""
    return [
        {
            "method": one.method,
            "share_of_floor": round(one.share, 4),
            "step_seconds": round(one.step_seconds, 4),
            "cpu_seconds": round(one.cpu_seconds, 4),
            "floor_seconds": round(one.gflop / one.matrix_gflops, 4),
            "gflop": round(one.gflop, 1),
            "matrix_gflop_per_second": round(one.matrix_gflops, 1),
            "peak_mb": round(one.peak_mb),
            "student_parameters": one.parameters,
            **vars(setting),
            "operators": json.dumps({kind: round(share, 4) for kind, share in one.operators.items()}),
        }
        for one in measured
    ]


def print_steps(measured: Sequence[MeasuredStep], setting: TrainSetting) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    caption = f"{setting.utterances} x {setting.seconds:g} s, {setting.threads} thread(s), fp32, medians"
    table = Table(box=box.SIMPLE, caption=caption)
    for name in ("step", *(one.method for one in measured)):
        table.add_column(name, justify="left" if name == "step" else "right")
    table.add_row("share of the floor's speed", *(f"{one.share:.3f}" for one in measured))
    table.add_row("seconds", *(f"{one.step_seconds:.2f}" for one in measured))
    table.add_row("CPU seconds", *(f"{one.cpu_seconds:.2f}" for one in measured))
    table.add_row("matrix products, GFLOP/s", *(f"{one.matrix_gflops:.0f}" for one in measured))
    table.add_row("peak memory, MB", *(f"{one.peak_mb:.0f}" for one in measured), end_section=True)
    for kind in (*KINDS, ELSE):
        table.add_row(kind, *(f"{one.operators.get(kind, 0.0):.1%}" for one in measured))
    Console().print(table)


def draw_steps(measured: Sequence[MeasuredStep], path: Path) -> None:
    """Where each step's time goes, beside the time that its multiplications alone would take."""
    from matplotlib import pyplot as plt

    from distiller.common.plotting import save_figure

    figure, axes = plt.subplots(figsize=(9, 1.6 + 0.8 * len(measured)), layout="constrained")
    done = [0.0] * len(measured)
    for kind in (*KINDS, ELSE):
        widths = [one.operators.get(kind, 0.0) * one.step_seconds for one in measured]
        axes.barh([one.method for one in measured], widths, 0.6, done, label=kind)
        done = [left + width for left, width in zip(done, widths, strict=True)]
    for place, one in enumerate(measured):
        axes.vlines(one.gflop / one.matrix_gflops, place - 0.4, place + 0.4, "black", "dashed")
    axes.invert_yaxis()
    axes.set(xlabel="seconds of a step (dashed: its multiplications at the rate of matrix products)")
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.25))
    save_figure(figure, path)
