"""The trained modules: a student with its frozen teacher, with or without gates on its units."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distiller.audio.batch import Batch
from distiller.distillation.controls import apply_negative_control
from distiller.objectives.base import Objective, Term
from distiller.recipes.recipe import Recipe
from distiller.students.gates import GatedEncoder
from distiller.students.lagrangian import SparsityLagrangian
from distiller.teachers.alignment import aligned
from distiller.teachers.several import teacher_names
from distiller.training.layer_options import half_matrices
from distiller.training.module import TrainingModule, by_decay
from upstream.encoder import SpeechEncoder


class Distillation(TrainingModule):
    """Teachers (usually one) and student encode the same batch, and the objective compares their outputs.

    If the objective needs no teacher, only the student is run.

    Teachers are not submodules: they stay in eval mode, without gradients, out of checkpoints and optimisers.
    """

    def __init__(
        self,
        teachers: Sequence[SpeechEncoder],
        student: SpeechEncoder | GatedEncoder,
        objective: Objective,
        recipe: Recipe,
    ) -> None:
        super().__init__(student, recipe.optimizer, recipe.seed, recipe.trainer.ema)
        self.objective = objective
        self.needs_teacher = recipe.objective.needs_teacher
        self.control, self.names = recipe.control, teacher_names(recipe)
        self.extractor_lr = recipe.optimizer.lr * recipe.optimizer.extractor_lr_scale
        # a tuple hides them from nn.Module
        self.teachers = tuple(teacher.eval().requires_grad_(False) for teacher in teachers)
        compared = self.teachers if self.needs_teacher else ()
        self.shapes = [network.config for network in (*compared, student)]

    @property
    def encoder(self) -> SpeechEncoder:
        """The student without its gates."""
        encoder = self.student.encoder if isinstance(self.student, GatedEncoder) else self.student
        assert isinstance(encoder, SpeechEncoder)
        return encoder

    def move_frozen(self, device: torch.device, half: torch.dtype | None = None) -> None:
        """Uses copies of the teachers with half-precision matrices; later steps need the teachers in fp32."""
        if self.needs_teacher:
            moved = (teacher.to(device) for teacher in self.teachers)
            self.teachers = tuple(teacher if half is None else half_matrices(teacher, half) for teacher in moved)

    def frame_lengths(self, batch: Batch) -> Tensor:
        counts = [shape.frame_count(batch.lengths) for shape in self.shapes]
        return torch.stack(counts).amin(dim=0)  # as `aligned` cuts the outputs

    def special_groups(self) -> list[dict[str, Any]]:
        """The extractor's weights, if they have a different learning rate."""
        if self.extractor_lr == self.optimizer_config.lr:
            return []
        weights, decay = self.encoder.feature_extractor.parameters(), self.optimizer_config.weight_decay
        return by_decay(weights, decay, lr=self.extractor_lr)

    def compared(self) -> dict[str, nn.Module]:
        """The networks whose outputs go into the loss, if they can be run alone."""
        teachers = self.teachers if self.needs_teacher else ()
        names = [f"teacher {name}" for name in self.names] if len(teachers) > 1 else ["teacher"]
        named = dict(zip(names, teachers, strict=False))
        return named | ({} if self.shards else {"student": self.student})

    def networks(self) -> list[nn.Module]:
        return [self.student, *self.teachers]

    def finite_outputs(self, batch: Batch) -> dict[str, Tensor]:
        outputs = {
            name: network(batch.heard if network is self.student else batch.waveforms, batch.lengths)
            for name, network in self.compared().items()
        }
        return {
            name: torch.stack([states.isfinite().all() for states in (output.projected, *output.hidden_states)]).all()
            for name, output in outputs.items()
        }

    def losses(self, batch: Batch) -> list[Term]:
        maps, compared = self.objective.needs_attention_maps, self.teachers if self.needs_teacher else ()
        with torch.no_grad():
            teachers = [teacher(batch.waveforms, batch.lengths, maps) for teacher in compared]
        with self.objective.watching(self.encoder, batch.lengths, batch.ids) as targets:
            student = self.student(batch.heard, batch.lengths, maps)
        *teachers, student = aligned(*teachers, student)
        if self.control != "none":
            teachers = [apply_negative_control(teacher, self.control) for teacher in teachers]
        teacher = teachers if len(teachers) > 1 else next(iter(teachers), None)
        return self.objective(teacher, student, student.frame_mask(), targets)


class JointDistillation(Distillation):
    """Distillation while gates close units of the student, until it has its target size (DPHuBERT's first stage)."""

    def __init__(
        self,
        teachers: Sequence[SpeechEncoder],
        student: GatedEncoder,
        objective: Objective,
        recipe: Recipe,
        lagrangian: SparsityLagrangian,
    ) -> None:
        super().__init__(teachers, student, objective, recipe)
        self.lagrangian = lagrangian

    @property
    def gated(self) -> GatedEncoder:
        assert isinstance(self.student, GatedEncoder)
        return self.student

    def penalty(self) -> tuple[Tensor, dict[str, float | Tensor]]:
        return self.lagrangian(self.gated, self.progress.step)

    def special_groups(self) -> list[dict[str, Any]]:
        self.lagrangian.steps = self.steps  # known only once the corpus has been opened
        return [*super().special_groups(), *self.lagrangian.parameter_groups(self.gated)]
