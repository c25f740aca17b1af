"""Distillation: a frozen teacher, a student, an objective, and the run from a recipe to a finished student."""

import copy
import time
from pathlib import Path

import torch
from torch import Tensor

from distiller import card, report
from distiller.batching import AudioDataset, Batch, WindowSampler, validation_batches
from distiller.controls import controlled
from distiller.corpus import SkippedLog, open_corpus
from distiller.figures import loss_curves, phone_accuracy
from distiller.loop import fit
from distiller.objectives import Objective, Term, build
from distiller.recipe import Recipe
from distiller.students import build_student
from distiller.teacher import load_teacher
from distiller.training import WindowTraining
from upstream.checkpoint import save
from upstream.encoder import SpeechEncoder
from upstream.extractor import frame_mask


class Distillation(WindowTraining):
    """Teacher and student hear the same batch; the objective compares what they make of it.

    The teacher is no submodule: it stays in eval mode, without gradients, out of checkpoints and of every optimiser,
    whatever Lightning does to this module.
    """

    def __init__(self, teacher: SpeechEncoder, student: SpeechEncoder, objective: Objective, recipe: Recipe) -> None:
        super().__init__(student, recipe.optimizer, recipe.seed, recipe.trainer.ema)
        self.objective = objective
        self.control = recipe.control
        self._teacher = (teacher.eval().requires_grad_(False),)  # a tuple hides it from nn.Module

    @property
    def teacher(self) -> SpeechEncoder:
        return self._teacher[0]

    def on_fit_start(self) -> None:
        self.teacher.to(self.device)

    def frame_lengths(self, batch: Batch) -> Tensor:
        return self.teacher.config.frame_count(batch.lengths)

    def losses(self, batch: Batch) -> list[Term]:
        maps = self.objective.needs_attention_maps
        with torch.no_grad():
            teacher = self.teacher(batch.waveforms, batch.lengths, maps)
        student = self.student(batch.waveforms, batch.lengths, maps)
        if self.control != "none":
            teacher = controlled(teacher, self.control)
        return self.objective(teacher, student, frame_mask(student.frame_lengths, student.projected.shape[1]))


def distil(recipe: Recipe, output: Path) -> None:
    """Run a recipe to its end below `output`, continuing with whatever an earlier run left there.

    corpus/ -> checkpoints/ (and best/) -> student/ -> report.json, which marks the run as finished.

    Raises:
        UserError: whatever the user can mend, in one sentence.
    """
    started = time.perf_counter()
    teacher = load_teacher(recipe.teacher)
    torch.manual_seed(recipe.seed)
    student = build_student(recipe.student, teacher)
    untrained = copy.deepcopy(student)
    objective = build(recipe.objective, teacher.config, student.config)
    corpus = open_corpus(recipe.corpus, output / "corpus", min_samples=teacher.config.min_samples)
    skipped = SkippedLog(output / "skipped.csv", recipe.corpus.max_skipped, corpus.skipped)
    module = Distillation(teacher, student, objective, recipe)

    def windows(rank: int, world_size: int) -> WindowSampler:
        section, accumulate = recipe.corpus, recipe.trainer.accumulate
        return WindowSampler(
            corpus.train, section.batch_seconds, section.buckets, recipe.seed, rank, world_size, accumulate
        )

    goes_on = fit(
        module,
        AudioDataset(corpus.train, recipe.seed, teacher.config.min_samples),
        windows,
        recipe.trainer,
        output,
        workers=recipe.corpus.workers,
        held_out=validation_batches(corpus.validation, recipe.corpus.batch_seconds),
        keep_best=lambda trained: save(trained.kept_student(), output / "best"),
        skipped=skipped,
    )
    if not goes_on:
        return
    distilled = module.kept_student().eval()
    loss_curves(output)
    probe = report.probe_all(teacher, untrained, distilled) if recipe.probe.enabled else None
    seconds = module.elapsed + time.perf_counter() - started
    result = report.summary(recipe, output, distilled, probe, skipped.count, seconds)
    if probe is not None:
        phone_accuracy(output, probe)
    save(distilled, output / "student", extra_files=card.files(output, result))
    report.finish(output, result)
