"""What every objective is: two encoder outputs in, named loss terms out."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from upstream.config import EncoderConfig
from upstream.encoder import EncoderOutput


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
    """Base of all objectives; projections, where an objective needs them, are its parameters."""

    needs_attention_maps: bool = False  # the encoders compute A^1..A^L only when this is True

    def __init__(self, config: Any, teacher_config: EncoderConfig, student_config: EncoderConfig) -> None:
        """
        Args:
            config: the recipe's objective section, of the class that `OBJECTIVES` has for this objective.

        Raises:
            UserError: encoders that the objective cannot compare.
        """
        super().__init__()

    @abstractmethod
    def forward(self, teacher: Any, student: EncoderOutput, frame_mask: Tensor) -> list[Term]:
        """
        Args:
            teacher: what the student follows, without gradients: the teacher's `EncoderOutput` for the same waveforms,
                or `UnitTargets`.
            student: its output.
            frame_mask: (batch, frame) bool, True at valid frames. Values at other frames have no influence.
        """
