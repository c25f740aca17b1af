"""The shipped training loop with its data: the recipe for 960 h on noise, from WAV files to the optimiser's steps."""

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch.utils.data import DataLoader

from distiller.audio.batch import Batch
from distiller.audio.sampler import StepBatchSampler
from distiller.benchmarks.processes import require_device
from distiller.benchmarks.tables import print_table, three, write_table
from distiller.common.files import disk_errors
from distiller.common.provenance import peak_memory_mb
from distiller.distillation.distil import settle_batches
from distiller.distillation.stages import Run, train
from distiller.steps.step import distillation, recipe_of, teacher_shape
from distiller.training import loop
from distiller.training.devices import place
from upstream.config import SAMPLE_RATE, EncoderConfig
from upstream.encoder import SpeechEncoder

FIRST = 5  # steps counted separately: kernels are chosen and compiled in them
LEAST = 3  # minimum number of steps after those, however long they take
SHORTEST, LONGEST = 1.5, 17.0  # seconds of an utterance; LibriSpeech's are similar, 12 on average
WORKERS = max(1, min(14, (os.cpu_count() or 1) - 2))
SHOWN = (  # columns of loop.csv, and their titles
    ("real_time", "x real\ntime"),
    ("first_seconds", f"seconds of\n{FIRST} steps"),
    ("steps", "steps\nafter"),
    ("waited_seconds", "seconds\nwaited"),
    ("audio_per_waited_second", "audio s per\ns waited"),
    ("peak_mb", "peak\nMB"),
)


@dataclass(frozen=True)
class LoopSetting:
    """How long the loop runs after its first steps, the amount of audio, the device, and overrides of the recipe."""

    seconds: float = 60.0
    hours: float = 1.0
    threads: int = 2
    device: str = "cpu"
    overrides: tuple[str, ...] = ()


def benchmark_loop(methods: Sequence[str], setting: LoopSetting, output: Path) -> None:
    """Run each method's loop for a while, print a table, write loop.csv (after each method, so that nothing is lost).

    Raises:
        UserError: a recipe is refused, or the system's temporary folder has no room for the corpus.
    """
    require_device(setting.device)
    rows = []
    for method in methods:
        rows.append(measure_loop(method, setting, teacher_shape(setting.overrides)))
        write_table(output / "loop.csv", rows, tell=method == methods[-1])
    lines = [[row["method"], *(three(row[column]) for column, _ in SHOWN)] for row in rows]
    caption = (
        f"{setting.hours:g} h of noise, {setting.device}, {rows[0]['workers']} worker(s), {rows[0]['precision']}, "
        f"after {FIRST} steps"
    )
    print_table("loop", [title for _, title in SHOWN], lines, caption)


def measure_loop(method: str, setting: LoopSetting, teacher: EncoderConfig) -> dict[str, Any]:
    """A row: training speed after the first steps, and how long the loop waited for its data.

    first_seconds: from the loop's start to the end of its step number FIRST. All other numbers are for later steps.
    """
    torch.set_num_threads(setting.threads)
    with tempfile.TemporaryDirectory() as name, disk_errors(Path(name)):
        corpus = write_noise(Path(name) / "corpus", setting.hours)
        fixed = [f"corpus.path={corpus}", "corpus.subsets=[]", "corpus.validation=[]"]
        fixed += [f"corpus.workers={WORKERS}", f"trainer.accelerator={setting.device}"]
        if setting.device == "cpu":
            fixed.append("trainer.precision=32-true")
        recipe = recipe_of(method, teacher, [*fixed, *setting.overrides])
        recipe = replace(recipe, trainer=place(recipe.trainer))
        torch.manual_seed(recipe.seed)
        encoder = SpeechEncoder(teacher).eval().requires_grad_(False)
        run = settle_batches(Run(recipe, Path(name) / "run", [encoder]))
        recipe, module = run.recipe, distillation(run.recipe, run.teacher)
        if setting.device == "cuda":  # after batch_seconds=auto has measured how much fits
            torch.cuda.reset_peak_memory_stats()
        with watched(setting) as watch:
            train(run, module, recipe, run.output, keep_best=lambda trained: None)
    row = {"method": method, "device": setting.device, "precision": recipe.trainer.precision} | watch.figures()
    row |= {"peak_mb": peak_memory_mb("cuda") if setting.device == "cuda" else None, "hours": setting.hours}
    row |= {"batch_seconds": recipe.corpus.batch_seconds, "accumulate": recipe.trainer.accumulate}
    row |= {"workers": recipe.corpus.workers, "threads": setting.threads, "overrides": " ".join(setting.overrides)}
    return row


def write_noise(folder: Path, hours: float) -> Path:
    """WAV files of 16 bits at 16 kHz; returns their folder."""
    folder.mkdir()
    random = np.random.default_rng(0)
    left, index = hours * 3600, 0
    while left > 0:
        seconds = SHORTEST + (LONGEST - SHORTEST) * random.beta(3.0, 1.4)
        samples = random.integers(-3000, 3000, int(seconds * SAMPLE_RATE), dtype=np.int16)
        soundfile.write(folder / f"{index:06}.wav", samples, SAMPLE_RATE)
        left, index = left - seconds, index + 1
    return folder


@dataclass
class Watch:
    """When each step began, how long it waited for its data, and how much audio it had."""

    device: str
    began: list[float] = field(default_factory=list)  # a step begins where the previous one ends
    waited: list[float] = field(default_factory=list)
    audio: list[float] = field(default_factory=list)  # seconds

    def begin(self, last: bool = False) -> None:
        """Waits for a GPU only at the beginning and end of the measured steps."""
        if self.device == "cuda" and (last or len(self.began) == FIRST):
            torch.cuda.synchronize()
        self.began.append(time.perf_counter())
        self.waited.append(0.0)
        self.audio.append(0.0)

    def figures(self) -> dict[str, float | int]:
        audio, seconds, waited = sum(self.audio[FIRST:]), self.began[-1] - self.began[FIRST], sum(self.waited[FIRST:])
        return {
            "real_time": audio / seconds,
            "first_seconds": self.began[FIRST] - self.began[0],
            "steps": len(self.began) - 1 - FIRST,
            "loop_seconds": seconds,
            "audio_seconds": audio,
            "waited_seconds": waited,
            "audio_per_waited_second": audio / max(waited, 1e-6),
        }


@contextmanager
def watched(setting: LoopSetting) -> Iterator[Watch]:
    """A context in which the training loop's loader records times, and ends `setting.seconds` after the first steps."""
    watch, original = Watch(setting.device), loop.DataLoader

    class WatchedLoader(DataLoader[Any]):
        def __iter__(self) -> Any:
            assert isinstance(self.sampler, StepBatchSampler)
            return iterated(super().__iter__(), self.sampler.accumulate)

    def iterated(batches: Iterator[Batch], accumulate: int) -> Iterator[Batch]:
        while len(watch.began) < FIRST + LEAST or time.perf_counter() - watch.began[FIRST] < setting.seconds:
            watch.begin()
            for _ in range(accumulate):
                started = time.perf_counter()
                batch = next(batches)
                watch.waited[-1] += time.perf_counter() - started
                watch.audio[-1] += int(batch.lengths.sum()) / SAMPLE_RATE
                yield batch
        watch.begin(last=True)

    loop.DataLoader = WatchedLoader
    try:
        yield watch
    finally:
        loop.DataLoader = original
