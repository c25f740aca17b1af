"""The interface of objectives: two encoder outputs in, named loss terms out. A sum of objectives is one, too."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from distiller.objectives.config import SumConfig
from upstream.config import EncoderConfig
from upstream.encoder import EncoderOutput, SpeechEncoder


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

    @contextmanager
    def watching(self, student: SpeechEncoder, lengths: Tensor, ids: list[str]) -> Iterator[Any]:
        """Wraps the student's forward pass of a batch, for objectives that inspect it or change its input.

        Args:
            lengths: (batch,) samples of each utterance.
            ids: of the utterances.

        Yields:
            The `targets` of `forward`, complete once the student has run.
        """
        yield None

    @abstractmethod
    def forward(self, teacher: Any, student: EncoderOutput, frame_mask: Tensor, targets: Any = None) -> list[Term]:
        """
        Args:
            teacher: the teacher's output for the same waveforms, without gradients; None if no step needs one.
            student: its output.
            frame_mask: (batch, frame) bool, True at valid frames. Values at other frames have no effect.
            targets: yielded by `watching`.
        """


class Sum(Objective):
    """A weighted sum of objectives over the same forward passes of teacher and student."""

    def __init__(self, config: SumConfig, parts: dict[str, Objective]) -> None:
        nn.Module.__init__(self)
        self.parts = nn.ModuleDict(parts)
        self.weights = {part.name: part.weight for part in config.parts()}
        self.needs_attention_maps = any(part.needs_attention_maps for part in parts.values())

    def each(self) -> Iterator[tuple[str, Objective]]:
        yield from self.parts.items()  # type: ignore[misc]  # ModuleDict forgets the type

    @contextmanager
    def watching(self, student: SpeechEncoder, lengths: Tensor, ids: list[str]) -> Iterator[Any]:
        with ExitStack() as stack:
            yield {name: stack.enter_context(part.watching(student, lengths, ids)) for name, part in self.each()}

    def forward(self, teacher: Any, student: EncoderOutput, frame_mask: Tensor, targets: Any = None) -> list[Term]:
        """The terms of all parts, with the part's name as prefix: star.layer_wise."""
        return [
            replace(term, name=f"{name}.{term.name}", weight=self.weights[name] * term.weight)
            for name, part in self.each()
            for term in part(teacher, student, frame_mask, targets and targets[name])
        ]
