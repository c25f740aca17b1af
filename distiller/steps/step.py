"""A training step in the process that measures it: how it is built and run, and its operation count."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distiller.audio.batch import Batch
from distiller.benchmarks.encoders import HUBERT_BASE
from distiller.common.provenance import parameter_count
from distiller.distillation.distillation_module import Distillation
from distiller.distillation.stages import Run, first_module
from distiller.recipes.recipe import Recipe, load_recipe
from distiller.steps.peer import Peer
from distiller.teachers.several import Target
from distiller.teachers.teacher import load_teacher
from distiller.training.loop import HALF, arrange_layers
from upstream.config import SAMPLE_RATE, EncoderConfig
from upstream.cost import count_macs
from upstream.encoder import SpeechEncoder

OURS, PEER = "ours", "peer"
SHORTER = 0.15  # the shortest utterance of a padded batch is shorter than the longest by this share
MATRIX = {"cpu": 2048, "cuda": 8192}  # rows and columns of the products whose rate defines the floor
PRODUCTS = {"cpu": 1, "cuda": 20}  # products in a measurement of that rate
TOGETHER = {"cpu": 1, "cuda": 3}  # steps in a measurement: on a GPU work is queued ahead, as in training
WARM_UP = {"cpu": 1, "cuda": 4}  # steps before the first: optimiser states, kernels, plans, compilation
STEPS = 25_000  # of the whole run, for schedules
CLUSTERS = 5  # of SKILL's layers, instead of finding them; their number hardly matters
# the loss's overhead over the encoders' multiplications: STaR's step at paper scale takes 435 GFLOP, 427 of them for
# the encoders
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


@dataclass(frozen=True)
class TrainSetting:
    """The audio of a step, where and how often it is run, and overrides of the method's recipe for 960 h."""

    seconds: float = 8.0
    batches: tuple[int, ...] = (2,)  # utterances of a micro-batch
    threads: int = 2
    rounds: int = 7
    device: str = "cpu"
    overrides: tuple[str, ...] = ()

    def recipe(self, method: str) -> Recipe:
        """The recipe, in fp32 on a CPU, where emulated bf16 would be meaningless."""
        device = ["trainer.precision=32-true"] if self.device == "cpu" else []
        return recipe_of(method, teacher_shape(self.overrides), [*device, *self.overrides])


@dataclass(frozen=True)
class Step:
    """The measured step: ours or the peer's, and its micro-batch."""

    of: str  # OURS or PEER
    method: str
    utterances: int
    padded: bool
    setting: TrainSetting
    teacher: EncoderConfig

    def lengths(self) -> Tensor:
        """(utterance,) samples: all of equal length, or up to SHORTER less."""
        shares = torch.linspace(1.0, 1.0 - SHORTER * self.padded, self.utterances, dtype=torch.float64)
        return (shares * int(self.setting.seconds * SAMPLE_RATE)).long()

    def batch(self) -> Batch:
        lengths = self.lengths()
        waveforms = 0.1 * torch.randn(len(lengths), int(lengths.max()))
        waveforms[torch.arange(waveforms.shape[1]) >= lengths[:, None]] = 0.0
        return Batch(waveforms, lengths, [], [], []).to(self.setting.device)


def distillation(recipe: Recipe, teacher: SpeechEncoder) -> Distillation:
    """STaR's student of 22.3 M parameters, or a copy of the teacher with gates for SKILL."""
    return first_module(Run(recipe, Path(), [teacher]), [Target(recipe.objective, teacher.config)])


def recipe_of(method: str, teacher: EncoderConfig, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe for 960 h."""
    fixed = ["corpus.path=none"]
    if method == "skill":
        layers = range(teacher.num_layers + 1)
        bounds = [len(layers) * index // CLUSTERS for index in range(CLUSTERS + 1)]
        clusters = [list(layers[start:end]) for start, end in pairwise(bounds) if start < end]
        fixed.append(f"objective.clusters={clusters}")
    return load_recipe(f"{method}-hubert-960h", [*fixed, *overrides])


@cache
def teacher_shape(overrides: tuple[str, ...]) -> EncoderConfig:
    """HuBERT Base's shape, or that of the teacher in the overrides.

    Raises:
        UserError: it cannot be loaded.
    """
    named = [value for key, _, value in (change.partition("=") for change in overrides) if key == "teacher"]
    return load_teacher(named[-1]).config if named else HUBERT_BASE


@cache
def module_of(of: str, method: str, setting: TrainSetting, teacher: EncoderConfig) -> Distillation | Peer:
    """The networks, on the device; built once for all micro-batches."""
    torch.set_num_threads(setting.threads)
    torch.manual_seed(0)
    recipe = setting.recipe(method)
    if of == PEER:
        return Peer(method, teacher, recipe.student.shape(teacher)).to(setting.device)
    module = distillation(recipe, SpeechEncoder(teacher))
    device = torch.device(setting.device)
    module.move_frozen(device, HALF.get(recipe.trainer.precision))
    arrange_layers(module, recipe.trainer, device, seconds=math.inf)  # compiled if a long run would be
    module.steps = STEPS
    return module.to(setting.device).train()


@cache
def function_of(step: Step) -> Callable[[], None]:
    """A step as the training loop takes it: both forward passes, loss, backward pass, clipping, optimiser."""
    setting, batch = step.setting, step.batch()
    module = module_of(step.of, step.method, setting, step.teacher)
    half = HALF.get(setting.recipe(step.method).trainer.precision)
    optimizer = module.optimizer()
    sizes = {"utterance": float(step.utterances), "frame": float(module.frame_lengths(batch).sum())}
    counts = {unit: torch.tensor(size, device=setting.device) for unit, size in sizes.items()}

    def take() -> None:
        optimizer.zero_grad()
        penalty, _ = module.penalty()
        with torch.autocast(setting.device, half, enabled=half is not None):
            loss, _ = module(batch, counts)
        (loss + penalty).backward()
        nn.utils.clip_grad_norm_([p for p in module.parameters() if p.grad is not None], 10.0)
        optimizer.step()

    return take


def prepare(step: Step) -> bool:
    """Warm up; returns whether the GPU's memory was enough. Afterwards its peak is that of this step."""
    try:
        take = function_of(step)
        for _ in range(WARM_UP[step.setting.device]):
            take()
        if step.setting.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return False
    return True


def take_steps(step: Step) -> tuple[float, float]:
    """Seconds of a step, and of this process's CPU time; runs several in a row and waits for the GPU at the end."""
    take, together, start = function_of(step), TOGETHER[step.setting.device], time.process_time()
    seconds = timed(step.setting.device, lambda: [take() for _ in range(together)])
    return seconds / together, (time.process_time() - start) / together


def timed(device: str, work: Callable[[], Any]) -> float:
    """Seconds that some work takes, on a GPU between two events of its stream."""
    if device == "cpu":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    begun, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begun.record()
    work()
    ended.record()
    torch.cuda.synchronize()
    return begun.elapsed_time(ended) / 1000


def matrix_rate(device: str) -> float:
    """Rate of large matrix products in 10^9 floating-point operations per second: fp32 on a CPU, bf16 on a GPU."""
    first, second = matrices(device)
    products = PRODUCTS[device]
    return 2 * products * MATRIX[device] ** 3 / timed(device, lambda: [first @ second for _ in range(products)]) / 1e9


@cache
def matrices(device: str) -> tuple[Tensor, Tensor]:
    """Random, since a GPU multiplies zeros and ones faster."""
    size, dtype = MATRIX[device], torch.float32 if device == "cpu" else torch.bfloat16
    first, second = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return first @ second.mT / size, second  # the first product creates the library's plans


def work_of(step: Step) -> tuple[float, int]:
    """10^9 operations of a step, and the student's parameters."""
    module = module_of(step.of, step.method, step.setting, step.teacher)
    assert isinstance(module, Distillation)
    student = module.encoder
    return LOSS.get(step.method, 1.0) * gflop(step, student.config), parameter_count(student)


def gflop(step: Step, student: EncoderConfig) -> float:
    """10^9 operations of the encoders: the teacher's forward pass, the student's, and twice that for backward.

    Padding is not counted.
    """
    macs = [count_macs(step.teacher, size) + 3 * count_macs(student, size) for size in step.lengths().tolist()]
    return 2 * sum(macs) / 1e9


def operators(step: Step) -> dict[str, float]:
    """Where a step's time goes (on a GPU, kernel time): kind of operator -> share, largest first."""
    from torch.profiler import ProfilerActivity, profile

    take, cuda = function_of(step), step.setting.device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities, acc_events=True) as profiler:  # True: no warning that says it is False
        timed(step.setting.device, take)
    taken: dict[str, float] = {}
    for event in profiler.key_averages():
        if event.device_type.name == "CPU":  # kernels have entries too, but their time is included in their operator's
            kind = next((kind for kind, parts in KINDS.items() if any(part in event.key for part in parts)), ELSE)
            seconds = event.self_device_time_total if cuda else event.self_cpu_time_total
            taken[kind] = taken.get(kind, 0.0) + seconds
    total = sum(taken.values()) or 1.0
    return {kind: seconds / total for kind, seconds in sorted(taken.items(), key=lambda item: -item[1])}
