"""The stages of a run, each from one folder to the next, so that a run continues from the last complete one.

A narrow student has one: OUTPUT/checkpoints. A pruned one has three (DPHuBERT, arXiv 2305.17651, section 2;
SKILL's are the same): OUTPUT/joint (distillation and pruning at once) -> OUTPUT/pruned (the student without its closed
units) -> OUTPUT/final (its distillation).
"""

import copy
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

from distiller.audio.batch import Batch
from distiller.audio.dataset import AudioDataset, validation_batches
from distiller.audio.decoding import Decoder
from distiller.audio.sampler import StepBatchSampler
from distiller.audio.skipped import SkippedLog
from distiller.augmentation.augmenter import Augmenter, open_augmenter
from distiller.clustering.calibrate import CalibrationAudio, cluster_layers
from distiller.common.process import rank
from distiller.common.provenance import parameter_count
from distiller.corpora.corpus import Corpus, open_audio, open_corpus
from distiller.distillation.distillation_module import Distillation, JointDistillation
from distiller.distillation.log_mel import LogMelRegression
from distiller.distillation.run_folder import LAYERS_OF
from distiller.objectives.config import ClustersConfig, ObjectiveConfig
from distiller.recipes.recipe import Recipe, final_stage
from distiller.reports.report import pruning_summary
from distiller.students.build import build_student
from distiller.students.config import NarrowConfig
from distiller.students.gates import GatedEncoder
from distiller.students.lagrangian import SparsityLagrangian
from distiller.students.prune import remove_closed_units
from distiller.teachers.several import Target, build_for, targets_of, teacher_names
from distiller.training.loop import Training
from distiller.training.module import TrainingModule
from upstream.checkpoint import existing_checkpoint, load, save
from upstream.config import SAMPLE_RATE
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError, require

LOG_MEL, JOINT, PRUNED, FINAL = "log-mel", "joint", "pruned", "final"
PROJECTIONS, METADATA = "objective.safetensors", "pruning.json"  # beside the encoder in OUTPUT/pruned


@dataclass
class Run:
    """The data that the stages of a run share."""

    recipe: Recipe
    output: Path
    teachers: list[SpeechEncoder]  # as `recipe.all_teachers`

    @property
    def teacher(self) -> SpeechEncoder:
        """The teacher that determines the student's kind and is compared with it after training."""
        return self.teachers[0]

    @property
    def longest(self) -> float:
        """The longest audio, in seconds, that all teachers accept; infinite if unlimited."""
        return min((teacher.config.max_samples or math.inf) / SAMPLE_RATE for teacher in self.teachers)

    @property
    def decoder(self) -> Decoder:
        shapes = [teacher.config for teacher in self.teachers]
        return Decoder(max(shape.min_samples for shape in (*shapes, self.recipe.student.shape(shapes[0]))))

    @cached_property
    def corpus(self) -> Corpus:
        corpus = open_corpus(self.recipe.corpus, self.decoder, self.output / "corpus")
        if rank() == 0:
            print("".join(f"{line}\n" for line in corpus.inventory.lines()), end="")
        longest = max(cut.duration for cut in [*corpus.train, *corpus.validation])
        if longest > self.longest:
            raise UserError(
                f"an utterance has {longest:.1f} s, but the teacher takes at most {self.longest:g} s; "
                f"corpus.max_seconds={self.longest:g} splits longer ones"
            )
        return corpus

    @cached_property
    def augment(self) -> Augmenter | None:
        """Degrades the student's audio in training; None if nothing does."""
        return open_augmenter(self.recipe.corpus.augment, self.recipe.seed, open_audio)

    @cached_property
    def held_out(self) -> list[Callable[[], Batch]]:
        return validation_batches(self.corpus.validation, self.recipe.corpus.seconds, self.decoder)

    def calibration_audio(self, other: str | None) -> CalibrationAudio:
        """The audio on which teacher layers are compared: the training audio, or all of another corpus."""
        corpus = self.recipe.corpus
        if other is None:
            return CalibrationAudio(corpus.path, self.corpus.train, corpus.seconds)
        cuts = open_audio(other, min(corpus.seconds, self.longest), self.decoder, self.output / "corpus")
        return CalibrationAudio(other, cuts, corpus.seconds)


@dataclass
class Distilled:
    """The result of the stages of a run."""

    student: SpeechEncoder
    untrained: SpeechEncoder  # of the same shape, for comparison
    folders: list[Path]  # of the stages in their order: metrics.csv, held_out.csv
    seconds: float  # in processes before this one
    pruning: dict[str, Any] | None = None  # metadata for report.json


@dataclass
class PrunedStudent:
    """A pruned student before its second distillation: the content of OUTPUT/pruned."""

    encoder: SpeechEncoder
    projections: dict[str, Tensor]  # state of the objective
    metadata: dict[str, Any]


def distil(run: Run) -> Distilled | None:
    """All stages of a run; None on all ranks but the first."""
    return distil_narrow(run) if run.recipe.pruning is None else distil_pruned(run)


def first_module(run: Run, targets: Sequence[Target]) -> Distillation:
    """The module of the first stage of a run, before its first step.

    Raises:
        UserError: networks that cannot be compared.
    """
    recipe = run.recipe
    student = build_student(recipe.student, run.teacher)
    objective = build_for(targets, student.config)
    pruning = recipe.pruning
    if pruning is None:
        return Distillation(run.teachers, student, objective, recipe)
    lagrangian = SparsityLagrangian(pruning, student.config, parameter_count(run.teacher), steps=1)
    recipe = replace(recipe, trainer=replace(recipe.trainer, ema=0.0))  # averaged gates would miss the target
    return JointDistillation(run.teachers, GatedEncoder(student, pruning.drops), objective, recipe, lagrangian)


def distil_narrow(run: Run) -> Distilled | None:
    """One stage, directly in the output folder; before it, if the recipe asks for it, the extractor's own."""
    module = first_module(run, with_clusters(run))
    assert isinstance(module.student, SpeechEncoder)
    untrained = copy.deepcopy(module.student)
    seconds = learn_log_mel(run, module.student)
    if not train(run, module, run.recipe, run.output):
        return None
    return Distilled(module.kept_student(), untrained, [run.output], seconds + module.progress.elapsed)


def learn_log_mel(run: Run, student: SpeechEncoder) -> float:
    """Train the extractor of a new student for `student.log_mel.steps`; returns the seconds that took."""
    assert isinstance(run.recipe.student, NarrowConfig)
    section = run.recipe.student.log_mel
    if not section.steps:
        return 0.0
    if rank() == 0:
        print(f"The extractor learns the log-mel spectrogram: {section.steps} steps")
    module = LogMelRegression(student, run.recipe, section.lr)
    trainer = replace(run.recipe.trainer, steps=section.steps, epochs=None, ema=0.0)
    train(run, module, replace(run.recipe, trainer=trainer), run.output / LOG_MEL, keep_best=lambda trained: None)
    student.requires_grad_(True)
    return module.progress.elapsed


def distil_pruned(run: Run) -> Distilled | None:
    """Joint distillation and pruning, removal of the closed units, the final distillation."""
    folder = existing_checkpoint(run.output / PRUNED)
    pruned = distil_jointly(run) if folder is None else read_pruned(folder)
    torch.manual_seed(run.recipe.seed)
    untrained = SpeechEncoder(pruned.encoder.config)
    recipe = final_stage(run.recipe)
    objective = build_for(with_clusters(run), pruned.encoder.config)
    objective.load_state_dict(pruned.projections)
    module = Distillation(run.teachers, pruned.encoder.train(), objective, recipe)
    if not train(run, module, recipe, run.output / FINAL):
        return None
    folders = [run.output / JOINT, run.output / FINAL]
    seconds = pruned.metadata.pop("seconds") + module.progress.elapsed
    return Distilled(module.kept_student(), untrained, folders, seconds, pruned.metadata)


def distil_jointly(run: Run) -> PrunedStudent:
    """The first stage of pruning and its result; the first rank writes OUTPUT/pruned."""
    module = first_module(run, with_clusters(run))
    assert isinstance(module, JointDistillation)
    first = train(run, module, run.recipe, run.output / JOINT, keep_best=lambda trained: None)
    pruned = prune(module)
    if first:
        metadata = json.dumps(pruned.metadata | {"seconds": module.progress.seconds()}, indent=1) + "\n"
        files: dict[str, bytes | str] = {PROJECTIONS: to_safetensors(pruned.projections), METADATA: metadata}
        save(pruned.encoder, run.output / PRUNED, files)
        print(pruning_summary(pruned.metadata))
    return pruned


@torch.no_grad()
def prune(module: JointDistillation) -> PrunedStudent:
    """The pruned student, which computes the same as the gated one in eval mode, and how much remains."""
    lagrangian = module.lagrangian
    sparsity = lagrangian.settle_gates(module.gated)
    encoder = remove_closed_units(module.gated)
    projections = {name: value.detach().cpu().clone() for name, value in module.objective.state_dict().items()}
    metadata = {
        "target": lagrangian.config.target,
        "sparsity": sparsity,
        "expected_sparsity": float(lagrangian.sparsity(module.gated.probabilities())),
        "log_alpha_shift": module.gated.shift,
        "met": lagrangian.met(sparsity),
        "parameters_before": lagrangian.parameters_before,
        "steps": module.steps,
        "seconds": module.progress.elapsed,
    }
    return PrunedStudent(encoder, projections, metadata)


def read_pruned(folder: Path) -> PrunedStudent:
    """The content of OUTPUT/pruned.

    Raises:
        UserError: it is damaged.
    """
    try:
        projections = load_file(folder / PROJECTIONS)
        old = re.compile(r"^heads(?=(\.\d+)+\.(weight|bias)$)")  # a name of earlier versions
        projections = {old.sub("projections", name): state for name, state in projections.items()}
        return PrunedStudent(load(folder), projections, json.loads((folder / METADATA).read_text()))
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder} is damaged ({error}); remove it and run the same command to prune again") from error


def with_clusters(run: Run) -> list[Target]:
    """The objective for each teacher; a part that needs clusters of the teacher's layers gets them here.

    Raises:
        UserError: more clusters than layers, or as `cluster_layers`.
    """
    recipe, first = run.recipe, teacher_names(run.recipe)[0]

    def found(teacher: SpeechEncoder, name: str, section: ObjectiveConfig) -> ObjectiveConfig:
        if not isinstance(section, ClustersConfig) or section.clusters is not None:
            return section
        layers = section.layers if section.layers is not None else range(teacher.config.num_layers + 1)
        possible = section.count == "auto" or int(section.count) <= len(layers)
        require(possible, f"{section.key}.count", section.count, f"auto or at most {len(layers)}, the teacher's layers")
        accelerator = recipe.trainer.accelerator
        device = accelerator if accelerator in ("cuda", "mps") else "cpu"
        audio = partial(run.calibration_audio, section.calibration.corpus)
        folder = run.output if name == first else run.output / f"{LAYERS_OF}{name}"
        folder.mkdir(exist_ok=True)
        return cluster_layers(section, teacher, audio, folder, recipe.seed, device, f"Layers of {name}")

    return targets_of(recipe, run.teachers, found)


def train(
    run: Run,
    module: TrainingModule,
    recipe: Recipe,
    folder: Path,
    keep_best: Callable[[TrainingModule], None] | None = None,
) -> bool:
    """Fit a module on the run's corpus, as `Training.fit`; all its files go below `folder`."""
    corpus, section = run.corpus, recipe.corpus
    skipped = SkippedLog(run.output / "skipped.csv", section.max_skipped)
    skipped.record(corpus.skipped)

    def windows(rank: int, world_size: int) -> StepBatchSampler:
        accumulate = recipe.trainer.accumulate
        return StepBatchSampler(
            corpus.train, section.seconds, section.buckets, recipe.seed, rank, world_size, accumulate
        )

    training = Training(
        module,
        AudioDataset(corpus.train, run.decoder, recipe.seed, run.augment),
        windows,
        recipe.trainer,
        folder,
        workers=section.workers,
        held_out=run.held_out,
        keep_best=keep_best or (lambda trained: save(trained.kept_student(), folder / "best")),
        skipped=skipped,
    )
    return training.fit()
