"""From a recipe's student section to a student: narrow ones here, pruned ones start as a copy of the teacher."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from distiller.strict import one_of, require
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError

INITIALIZATIONS = ("random", "teacher")


@dataclass(frozen=True)
class Size:
    """What makes a narrow student: its width, inner width, heads, depth and the extractor's channels."""

    embed_dim: int
    ffn_dim: int
    num_heads: int
    layers: int
    conv_layers: tuple[tuple[int, int, int], ...]


def _paper_extractor(width: int) -> tuple[tuple[int, int, int], ...]:
    """STaR's extractor, its last convolutions as wide as the encoder, so that nothing is projected."""
    return ((128, 10, 5), (256, 1, 1), *((256, 3, 2),) * 4, (width, 1, 1), *((width, 2, 2),) * 2)


# base: the paper's, 22,308,592 parameters; L: 26,626,672, its inner width inferred from the printed figures;
# S (14,114,800) and XS (9,393,472): our choice among the widths that give the printed counts.
SIZES = {
    "base": Size(432, 976, 12, 12, _paper_extractor(432)),
    "L": Size(432, 1392, 12, 12, _paper_extractor(432)),
    "S": Size(336, 792, 12, 12, _paper_extractor(336)),
    "XS": Size(288, 504, 12, 12, _paper_extractor(288)),
    # for the embedded teacher: a quarter of its parameters
    "embedded": Size(
        96, 256, 4, 6, ((32, 10, 5), (32, 3, 2), (32, 3, 2), (48, 3, 2), (64, 3, 2), (64, 2, 2), (96, 2, 2))
    ),
}


@dataclass
class PrunedConfig:
    """A copy of the teacher, from which the recipe's `pruning` section takes units."""

    name: str = "pruned"
    dropout: float = 0.0  # attention, hidden and activation; our choice
    feature_dropout: float = 0.0

    def validate(self) -> None:
        _check_dropouts(self)


@dataclass
class NarrowConfig:
    """A student of the teacher's kind but narrower, as in the STaR paper.

    size: one of SIZES, or "teacher" for the teacher's own widths (with fewer `layers`, DistilHuBERT's shape).
    initialization: "random" as in the paper, or "teacher": everything the two have in common, the lowest layers first.
    """

    name: str = "narrow"
    size: str = "base"
    layers: int | None = None  # the size's own when left out
    initialization: str = "random"
    dropout: float = 0.1  # attention, hidden and activation
    feature_dropout: float = 0.05

    def validate(self) -> None:
        """Raises UserError on a value that no student can have."""
        for key, allowed in (("size", (*SIZES, "teacher")), ("initialization", INITIALIZATIONS)):
            value = getattr(self, key)
            require(value in allowed, f"student.{key}", value, one_of(value, allowed))
        if self.initialization == "teacher":
            require(self.size == "teacher", "student.size", self.size, "teacher when student.initialization is")
        require(self.layers is None or self.layers >= 1, "student.layers", self.layers, "an integer of at least 1")
        _check_dropouts(self)


def _check_dropouts(student: NarrowConfig | PrunedConfig) -> None:
    for key in ("dropout", "feature_dropout"):
        value = getattr(student, key)
        require(0 <= value < 1, f"student.{key}", value, "a probability below 1")


def narrow_config(student: NarrowConfig, teacher: EncoderConfig) -> EncoderConfig:
    """The encoder of a narrow student; its family and input scaling are the teacher's.

    Raises:
        UserError: more layers than the teacher has, or frames that would not be the teacher's.
    """
    if student.size == "teacher":
        layers = student.layers or teacher.num_layers
        if layers > teacher.num_layers:
            raise UserError(f"student.layers is {layers}; the teacher has {teacher.num_layers}")
        config = replace(teacher, attention_heads=teacher.attention_heads[:layers], ffn_dims=teacher.ffn_dims[:layers])
    else:
        size = SIZES[student.size]
        layers = student.layers or size.layers
        config = EncoderConfig(
            family=teacher.family,
            embed_dim=size.embed_dim,
            num_heads=size.num_heads,
            head_dim=size.embed_dim // size.num_heads,
            attention_heads=(tuple(range(size.num_heads)),) * layers,
            ffn_dims=(size.ffn_dim,) * layers,
            conv_layers=size.conv_layers,
            projection=size.conv_layers[-1][0] != size.embed_dim,
            normalize_waveform=teacher.normalize_waveform,
        )
    check_same_frames(config, teacher)
    return _with_dropouts(config, student)


def pruned_config(student: PrunedConfig, teacher: EncoderConfig) -> EncoderConfig:
    """The encoder that pruning starts from: the teacher's shape."""
    return _with_dropouts(teacher, student)


def _with_dropouts(config: EncoderConfig, student: NarrowConfig | PrunedConfig) -> EncoderConfig:
    return replace(
        config,
        feature_dropout=student.feature_dropout,
        hidden_dropout=student.dropout,
        attention_dropout=student.dropout,
        activation_dropout=student.dropout,
    )


def check_same_frames(student: EncoderConfig, teacher: EncoderConfig) -> None:
    """Raises UserError unless the two make the same frames of every clip (a frame count is a composition of floors)."""
    same_field = (student.samples_per_frame, student.min_samples) == (teacher.samples_per_frame, teacher.min_samples)
    if not same_field or any(student.frame_count(n) != teacher.frame_count(n) for n in range(4000, 4000 + 640)):
        raise UserError(
            f"the student makes a frame of {student.min_samples} samples every {student.samples_per_frame}, "
            f"the teacher of {teacher.min_samples} every {teacher.samples_per_frame}; they must agree"
        )


def build_narrow(student: NarrowConfig, teacher: SpeechEncoder) -> SpeechEncoder:
    """A new student, its weights random (from torch's global generator) or the teacher's."""
    encoder = SpeechEncoder(narrow_config(student, teacher.config))
    if student.initialization == "teacher":
        wanted = encoder.state_dict()
        encoder.load_state_dict({key: value for key, value in teacher.state_dict().items() if key in wanted})
    return encoder


def build_pruned(student: PrunedConfig, teacher: SpeechEncoder) -> SpeechEncoder:
    """A copy of the teacher."""
    encoder = SpeechEncoder(pruned_config(student, teacher.config))
    encoder.load_state_dict(teacher.state_dict())
    return encoder


# by the name in a recipe's student section: the shape before any training, and the encoder itself
SHAPES: dict[str, Callable[[Any, EncoderConfig], EncoderConfig]] = {"narrow": narrow_config, "pruned": pruned_config}
BUILDERS: dict[str, Callable[[Any, SpeechEncoder], SpeechEncoder]] = {"narrow": build_narrow, "pruned": build_pruned}


def build_student(student: Any, teacher: SpeechEncoder) -> SpeechEncoder:
    """The student that a recipe's student section describes."""
    return BUILDERS[student.name](student, teacher)
