"""What of the teacher is matched: each objective is a module that turns two encoder outputs into named loss terms.

To add one, write a module with an `Objective` and give it a line in `OBJECTIVES`.
"""

import difflib
import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from upstream.config import EncoderConfig
from upstream.encoder import EncoderOutput
from upstream.errors import UserError

# name in a recipe -> "module:class"; imported on demand, since each module imports this one for the base class
OBJECTIVES: dict[str, str] = {
    "star": "distiller.objectives.star:Star",
    "clusters": "distiller.objectives.clusters:Clusters",
    "layers": "distiller.objectives.layers:Layers",
    "predictions": "distiller.objectives.layers:Predictions",
}


@dataclass(frozen=True)
class Term:
    """One summand of the loss, not yet normalised.

    A micro-batch knows only its own share, so the loop divides by the count of `unit` over the global batch (all ranks
    and accumulated micro-batches): loss = sum_i weight_i * total_i / count[unit_i].
    """

    name: str
    total: Tensor  # scalar: the sum over this micro-batch's units
    unit: str  # "utterance" | "frame" (valid ones)
    weight: float = 1.0


class Objective(nn.Module, ABC):
    """Base of all objectives; projections, where one needs them, are its parameters.

    A subclass is built from (its configuration, teacher's EncoderConfig, student's EncoderConfig) and names the
    dataclass of its configuration, which has `name` and `validate()`, in `config_class`.
    """

    config_class: ClassVar[type]
    needs_attention_maps: bool = False  # the encoders compute A^1..A^L only when this is True

    def __init__(self, config: Any, teacher_config: EncoderConfig, student_config: EncoderConfig) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, teacher: EncoderOutput, student: EncoderOutput, frame_mask: Tensor) -> list[Term]:
        """
        Args:
            teacher, student: outputs for the same waveforms; the teacher's receive no gradient.
            frame_mask: (batch, frame) bool, True at valid frames. What stands elsewhere has no influence.
        """


def objective_class(name: str) -> type[Objective]:
    """The class behind a recipe's `objective.name`.

    Raises:
        UserError: no objective of that name.
    """
    if name not in OBJECTIVES:
        nearest = difflib.get_close_matches(name, OBJECTIVES, n=1, cutoff=0)[0]
        raise UserError(
            f"objective.name is '{name}'; the nearest known one is '{nearest}' (known: {', '.join(OBJECTIVES)})"
        )
    module, _, attribute = OBJECTIVES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def build(config: Any, teacher_config: EncoderConfig, student_config: EncoderConfig) -> Objective:
    """The objective that `config` (an instance of its class's `config_class`) describes, validated.

    Raises:
        UserError: an unknown name, a value out of range, or encoders that the objective cannot compare.
    """
    objective = objective_class(config.name)
    config.validate()
    return objective(config, teacher_config, student_config)
