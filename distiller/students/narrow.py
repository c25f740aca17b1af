"""From a recipe's student section to a student: narrow ones here, pruned ones start as a copy of the teacher."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from distiller.students.config import SIZES, NarrowConfig, PrunedConfig
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError


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
