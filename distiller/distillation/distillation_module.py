"""The modules that are trained: a student beside its frozen teacher, with or without gates on its units."""

from typing import Any

import torch
from torch import Tensor, nn

from distiller.audio.batch import Batch
from distiller.distillation.controls import apply_negative_control
from distiller.objectives.alignment import aligned
from distiller.objectives.base import Objective, Term
from distiller.recipes.recipe import Recipe
from distiller.students.gates import GatedEncoder
from distiller.students.lagrangian import SparsityLagrangian
from distiller.training.layer_options import half_matrices
from distiller.training.module import TrainingModule, by_decay
from upstream.encoder import SpeechEncoder


class Distillation(TrainingModule):
    """Teacher and student encode the same batch, and the objective compares their outputs.

    Where the objective needs no teacher, the student alone is run.

    The teacher is not a submodule: it stays in eval mode, without gradients, out of checkpoints and optimisers.
    """

    def __init__(
        self, teacher: SpeechEncoder, student: SpeechEncoder | GatedEncoder, objective: Objective, recipe: Recipe
    ) -> None:
        super().__init__(student, recipe.optimizer, recipe.seed, recipe.trainer.ema)
        self.objective = objective
        self.needs_teacher = recipe.objective.needs_teacher
        self.control = recipe.control
        self.extractor_lr = recipe.optimizer.lr * recipe.optimizer.extractor_lr_scale
        self.shapes = (teacher.config, student.config)
        self._teacher = (teacher.eval().requires_grad_(False),)  # a tuple hides it from nn.Module

    @property
    def teacher(self) -> SpeechEncoder:
        return self._teacher[0]

    @property
    def encoder(self) -> SpeechEncoder:
        """The student without its gates."""
        encoder = self.student.encoder if isinstance(self.student, GatedEncoder) else self.student
        assert isinstance(encoder, SpeechEncoder)
        return encoder

    def move_frozen(self, device: torch.device, half: torch.dtype | None = None) -> None:
        """A copy with half matrices takes the place of the teacher, which what follows training needs in fp32."""
        if self.needs_teacher:
            teacher = self.teacher.to(device)
            self._teacher = (teacher if half is None else half_matrices(teacher, half),)

    def frame_lengths(self, batch: Batch) -> Tensor:
        counts = [shape.frame_count(batch.lengths) for shape in self.shapes]
        return torch.minimum(*counts) if self.needs_teacher else counts[1]  # as `aligned` cuts the outputs

    def special_groups(self) -> list[dict[str, Any]]:
        """The extractor's weights, if their learning rate is another."""
        if self.extractor_lr == self.optimizer_config.lr:
            return []
        weights, decay = self.encoder.feature_extractor.parameters(), self.optimizer_config.weight_decay
        return by_decay(weights, decay, lr=self.extractor_lr)

    def compared(self) -> dict[str, nn.Module]:
        """The networks whose outputs go into the loss, as far as they can be run alone."""
        teacher = {"teacher": self.teacher} if self.needs_teacher else {}
        return teacher | ({} if self.shards else {"student": self.student})

    def networks(self) -> list[nn.Module]:
        return [self.student, self.teacher]

    def finite_outputs(self, batch: Batch) -> dict[str, Tensor]:
        heard = {"teacher": batch.waveforms, "student": batch.heard}
        outputs = {name: network(heard[name], batch.lengths) for name, network in self.compared().items()}
        return {
            name: torch.stack([states.isfinite().all() for states in (output.projected, *output.hidden_states)]).all()
            for name, output in outputs.items()
        }

    def losses(self, batch: Batch) -> list[Term]:
        maps, teacher = self.objective.needs_attention_maps, None
        if self.needs_teacher:
            with torch.no_grad():
                teacher = self.teacher(batch.waveforms, batch.lengths, maps)
        with self.objective.watching(self.encoder, batch.lengths, batch.ids) as targets:
            student = self.student(batch.heard, batch.lengths, maps)
        if teacher is not None:
            teacher, student = aligned(teacher, student)
            if self.control != "none":
                teacher = apply_negative_control(teacher, self.control)
        return self.objective(teacher, student, student.frame_mask(), targets)


class JointDistillation(Distillation):
    """Distillation while gates close units of the student, until it has its target size (DPHuBERT's first stage)."""

    def __init__(
        self,
        teacher: SpeechEncoder,
        student: GatedEncoder,
        objective: Objective,
        recipe: Recipe,
        lagrangian: SparsityLagrangian,
    ) -> None:
        super().__init__(teacher, student, objective, recipe)
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
