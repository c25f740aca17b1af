"""One objective for several teachers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePath
from typing import Any

from torch import Tensor, nn

from distiller.objectives.base import Objective, Sum, Term
from distiller.objectives.config import ObjectiveConfig, SumConfig
from distiller.objectives.registry import build
from distiller.recipes.recipe import Recipe
from upstream.config import EncoderConfig
from upstream.encoder import EncoderOutput, SpeechEncoder
from upstream.errors import UserError


@dataclass(frozen=True)
class Target:
    """A teacher, as an objective sees it."""

    section: ObjectiveConfig  # the recipe's, with this teacher's layers
    shape: EncoderConfig
    name: str = ""
    weight: float = 1.0


def teacher_names(recipe: Recipe) -> list[str]:
    """A name for each teacher: the last part of its path, with -2 appended if an earlier one has the same name."""
    names: list[str] = []
    for name in (PurePath(teacher.path).name for teacher in recipe.all_teachers):
        while name in names:
            name += "-2"
        names.append(name)
    return names


def targets_of(
    recipe: Recipe,
    teachers: Sequence[SpeechEncoder],
    settle: Callable[[SpeechEncoder, str, ObjectiveConfig], ObjectiveConfig],
) -> list[Target]:
    """Each teacher as the objective sees it.

    Args:
        settle: fills in what a part of the objective needs to know from the teacher of that name.
    """
    targets = []
    for name, section, teacher in zip(teacher_names(recipe), recipe.all_teachers, teachers, strict=True):
        own = section.objective(recipe.objective).with_parts(partial(settle, teacher, name))
        targets.append(Target(own, teacher.config, name, section.weight))
    return targets


class SeveralTeachers(Objective):
    """The weighted mean over teachers of separate objectives for each of them, projections included.

    STaR's terms have the same gradient as a single comparison with the teachers' weighted mean target: for weights
    w_k of sum 1, sum_k w_k |G_k - G_S|^2 = |sum_k w_k G_k - G_S|^2 + c, and sum_k w_k KL(A_k || A_S) =
    KL(sum_k w_k A_k || A_S) + c', where c and c' measure how much the teachers differ, independently of the student.

    Args:
        targets: names and weights of the teachers. The names are prefixed to those of their terms; the sum of the
            weights does not matter.
    """

    def __init__(self, targets: Sequence[Target], parts: Sequence[Objective]) -> None:
        nn.Module.__init__(self)
        self.names = [target.name for target in targets]
        total = sum(target.weight for target in targets)
        self.weights = [target.weight / total for target in targets]
        self.parts = nn.ModuleList(parts)
        self.needs_attention_maps = any(part.needs_attention_maps for part in parts)

    def forward(self, teacher: Any, student: EncoderOutput, frame_mask: Tensor, targets: Any = None) -> list[Term]:
        """
        Args:
            teacher: the outputs of the teachers, in their order.
        """
        rows = zip(self.names, self.weights, self.parts, teacher, strict=True)
        return [
            replace(term, name=f"{name}.{term.name}", weight=weight * term.weight)
            for name, weight, part, output in rows
            for term in part(output, student, frame_mask)
        ]


def check_frame_rates(teachers: Mapping[str, EncoderConfig], student: EncoderConfig) -> None:
    """Raises UserError unless all teachers have the student's frame rate."""
    for name, shape in teachers.items():
        hops = (shape.samples_per_frame, student.samples_per_frame)
        if hops[0] != hops[1]:
            raise UserError(f"{name} has a frame every {hops[0]} samples, but the student every {hops[1]}")


def build_for(targets: Sequence[Target], student_config: EncoderConfig) -> Objective:
    """The objective for all of these teachers; a part that needs no teacher is included once.

    Raises:
        UserError: as `build`, or another frame rate.
    """
    check_frame_rates({target.name: target.shape for target in targets}, student_config)
    config = targets[0].section
    parts: dict[str, Objective] = {}
    for index, part in enumerate(config.parts()):
        compared = targets if part.needs_teacher else targets[:1]
        built = [build(target.section.parts()[index], target.shape, student_config) for target in compared]
        parts[part.name] = SeveralTeachers(compared, built) if len(built) > 1 else built[0]
    return Sum(config, parts) if isinstance(config, SumConfig) else parts[config.name]
