"""The stages of a run, each from one directory to the next, so that a run continues with whatever is there.

A narrow student takes one: OUTPUT/checkpoints. A pruned one takes three (DPHuBERT, arXiv 2305.17651, section 2;
SKILL's are the same): OUTPUT/joint (distillation and pruning at once) -> OUTPUT/pruned (what is left, cut out) ->
OUTPUT/final (distillation of that).
"""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
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
from distiller.clustering.calibrate import CalibrationAudio, cluster_layers
from distiller.common.provenance import parameter_count
from distiller.corpora.corpus import Corpus, open_audio, open_corpus
from distiller.distillation.distillation_module import Distillation, JointDistillation
from distiller.objectives.config import ClustersConfig
from distiller.objectives.registry import build
from distiller.recipes.recipe import Recipe
from distiller.reports.report import pruning_summary
from distiller.students.lagrangian import SparsityLagrangian, gate
from distiller.students.narrow import build_student
from distiller.students.prune import cut
from distiller.training.loop import Training
from distiller.training.module import TrainingModule
from upstream.checkpoint import existing_checkpoint, load, save
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError, require

JOINT, PRUNED, FINAL = "joint", "pruned", "final"
HEADS, FACTS = "objective.safetensors", "pruning.json"  # beside the cut student


@dataclass
class Run:
    """What the stages of one run share."""

    recipe: Recipe
    output: Path
    teacher: SpeechEncoder

    @property
    def decoder(self) -> Decoder:
        return Decoder(self.teacher.config.min_samples)

    @cached_property
    def corpus(self) -> Corpus:
        return open_corpus(self.recipe.corpus, self.decoder, self.output / "corpus")

    @cached_property
    def held_out(self) -> list[Callable[[], Batch]]:
        return validation_batches(self.corpus.validation, self.recipe.corpus.batch_seconds, self.decoder)

    @cached_property
    def objective(self) -> Any:
        """The recipe's objective section, with what it has to find out about the teacher first: its clusters."""
        section = self.recipe.objective
        if not isinstance(section, ClustersConfig):
            return section
        layers = section.layers if section.layers is not None else range(self.teacher.config.num_layers + 1)
        possible = section.clusters is not None or section.count == "auto" or int(section.count) <= len(layers)
        require(possible, "objective.count", section.count, f"auto or at most {len(layers)}, the teacher's layers")
        accelerator = self.recipe.trainer.accelerator
        device = accelerator if accelerator in ("cuda", "mps") else "cpu"
        title = f"Layers of {Path(self.recipe.teacher).name}"
        seed = self.recipe.seed
        return cluster_layers(section, self.teacher, self.calibration_audio, self.output, seed, device, title)

    def calibration_audio(self) -> CalibrationAudio:
        """The audio on which teacher layers are compared: that of the training, or all of another corpus."""
        corpus, other = self.recipe.corpus, self.recipe.objective.calibration.corpus
        if other is None:
            return CalibrationAudio(corpus.path, self.corpus.train, corpus.batch_seconds)
        cuts = open_audio(other, corpus.batch_seconds, self.decoder, self.output / "corpus")
        return CalibrationAudio(other, cuts, corpus.batch_seconds)


@dataclass
class Distilled:
    """What the stages of a run leave."""

    student: SpeechEncoder
    untrained: SpeechEncoder  # of the same shape, for comparison
    folders: list[Path]  # of the stages, the last one last: metrics.csv, held_out.csv
    seconds: float  # in processes before this one
    facts: dict[str, Any] = field(default_factory=dict)  # for report.json


@dataclass
class Cut:
    """A pruned student before its second distillation: what OUTPUT/pruned holds."""

    encoder: SpeechEncoder
    heads: dict[str, Tensor]  # state of the objective's projections
    facts: dict[str, Any]


def narrow(run: Run) -> Distilled | None:
    """One stage, straight below the output."""
    student = build_student(run.recipe.student, run.teacher)
    untrained = copy.deepcopy(student)
    objective = build(run.objective, run.teacher.config, student.config)
    module = Distillation(run.teacher, student, objective, run.recipe)
    if not train(run, module, run.recipe, run.output):
        return None
    return Distilled(module.kept_student(), untrained, [run.output], module.progress.elapsed)


def pruned(run: Run) -> Distilled | None:
    """Joint distillation and pruning, the cut, the final distillation."""
    folder = existing_checkpoint(run.output / PRUNED)
    left = joint(run) if folder is None else read_cut(folder)
    torch.manual_seed(run.recipe.seed)
    untrained = SpeechEncoder(left.encoder.config)
    section = run.recipe.pruning.final
    recipe = replace(
        run.recipe, optimizer=section.optimizer(run.recipe.optimizer), trainer=section.trainer(run.recipe.trainer)
    )
    objective = build(run.objective, run.teacher.config, left.encoder.config)
    objective.load_state_dict(left.heads)
    module = Distillation(run.teacher, left.encoder.train(), objective, recipe)
    if not train(run, module, recipe, run.output / FINAL):
        return None
    folders = [run.output / JOINT, run.output / FINAL]
    seconds = left.facts.pop("seconds") + module.progress.elapsed
    return Distilled(module.kept_student(), untrained, folders, seconds, {"pruning": left.facts})


def joint(run: Run) -> Cut:
    """The first stage of pruning and the cut; the first rank writes OUTPUT/pruned."""
    recipe, teacher = run.recipe, run.teacher
    student = build_student(recipe.student, teacher)
    pruning = SparsityLagrangian(recipe.pruning, student.config, parameter_count(teacher), steps=1)
    objective = build(run.objective, teacher.config, student.config)
    recipe = replace(recipe, trainer=replace(recipe.trainer, ema=0.0))  # averaged gates would be off the target
    module = JointDistillation(teacher, gate(student, recipe.pruning), objective, recipe, pruning)
    first = train(run, module, recipe, run.output / JOINT, keep_best=lambda trained: None)
    left = cut_out(module)
    if first:
        written = replace(left, facts=left.facts | {"seconds": module.progress.seconds()})
        save(left.encoder, run.output / PRUNED, written_files(written))
        print(pruning_summary(left.facts))
    return left


@torch.no_grad()
def cut_out(module: JointDistillation) -> Cut:
    """What is left of a gated student, which computes the same in eval mode from now on, and how much that is."""
    pruning = module.pruning
    sparsity = pruning.settle_gates(module.gated)
    encoder = cut(module.gated)
    heads = {name: value.detach().cpu().clone() for name, value in module.objective.state_dict().items()}
    facts = {
        "target": pruning.config.target,
        "sparsity": sparsity,
        "expected_sparsity": float(pruning.sparsity(module.gated.probabilities())),
        "log_alpha_shift": module.gated.shift,
        "met": pruning.met(sparsity),
        "parameters_before": pruning.parameters_before,
        "steps": module.steps,
        "seconds": module.progress.elapsed,
    }
    return Cut(encoder, heads, facts)


def written_files(left: Cut) -> dict[str, bytes | str]:
    """What stands beside the encoder in OUTPUT/pruned."""
    return {HEADS: to_safetensors(left.heads), FACTS: json.dumps(left.facts, indent=1) + "\n"}


def read_cut(folder: Path) -> Cut:
    """What `folder`, OUTPUT/pruned, holds: encoder, heads and facts.

    Raises:
        UserError: it is damaged.
    """
    try:
        return Cut(load(folder), load_file(folder / HEADS), json.loads((folder / FACTS).read_text()))
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder} is damaged ({error}); remove it, and the same command cuts once more") from error


def train(
    run: Run,
    module: Distillation,
    recipe: Recipe,
    folder: Path,
    keep_best: Callable[[TrainingModule], None] | None = None,
) -> bool:
    """Fit a module on the run's corpus, everything it writes going below `folder`; as `Training.fit`."""
    corpus, section = run.corpus, recipe.corpus
    skipped = SkippedLog(run.output / "skipped.csv", section.max_skipped)
    skipped.record(corpus.skipped)

    def windows(rank: int, world_size: int) -> StepBatchSampler:
        accumulate = recipe.trainer.accumulate
        return StepBatchSampler(
            corpus.train, section.batch_seconds, section.buckets, recipe.seed, rank, world_size, accumulate
        )

    training = Training(
        module,
        AudioDataset(corpus.train, run.decoder, recipe.seed),
        windows,
        recipe.trainer,
        folder,
        workers=section.workers,
        held_out=run.held_out,
        keep_best=keep_best or (lambda trained: save(trained.kept_student(), folder / "best")),
        skipped=skipped,
    )
    return training.fit()


# by the name in a recipe's student section
STAGES: dict[str, Callable[[Run], Distilled | None]] = {"narrow": narrow, "pruned": pruned}
