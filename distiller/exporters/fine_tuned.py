"""What is exported: a student, possibly fine-tuned by s3prl (`-f`) and stored in its checkpoint; or a recogniser."""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from distiller.finetuning.recognizer import Recognizer, is_recognizer, open_recognizer
from upstream.checkpoint import load
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError, shown
from upstream.expert import parse_model_config
from upstream.formats.files import read_torch

PREFIX = "encoder."  # of the weights in s3prl's upstream


@dataclass(frozen=True)
class Student:
    """A student to export."""

    encoder: SpeechEncoder
    source: str  # the checkpoint that its card and teacher come from
    history: str = ""  # what happened to it since, as a sentence
    recognizer: Recognizer | None = None  # whose encoder it is


def open_student(checkpoint: str, model_config: str | None = None, student: str | None = None) -> Student:
    """As `upstream.checkpoint.load`; recognisers, and s3prl's own checkpoints (dev-best.ckpt) of a fine-tuned upstream.

    Args:
        student: what was fine-tuned, if it is no longer where s3prl found it.

    Raises:
        UserError: as `load`; a checkpoint of s3prl without an upstream, or with one that does not fit the student.
    """
    path = Path(checkpoint)
    content = read_torch(path) if path.suffix == ".ckpt" and path.is_file() else {}
    if not _is_downstream(content):
        if student is not None:
            raise UserError(f"--student needs an s3prl checkpoint such as dev-best.ckpt, but {checkpoint} is not one")
        if is_recognizer(checkpoint):
            recognizer = open_recognizer(checkpoint)
            if not isinstance(recognizer.encoder, SpeechEncoder):
                raise UserError(f"{checkpoint} is a recogniser on log-mel energies, so it has no encoder to export")
            return Student(recognizer.encoder, checkpoint, recognizer=recognizer)
        return Student(load(checkpoint, model_config), checkpoint)
    weights = content.get("Upstream")
    if not isinstance(weights, Mapping) or not weights:
        raise UserError(f"{path} contains no fine-tuned upstream, which s3prl stores only if it runs with -f")
    arguments = content["Args"]
    source = student or getattr(arguments, "upstream_ckpt", None)
    if not isinstance(source, str):
        raise UserError(f"{path} does not name the student that was fine-tuned; give it with --student")
    encoder = _original(path, source, model_config or getattr(arguments, "upstream_model_config", None))
    _check_weights(path, weights, encoder)
    encoder.load_state_dict({name: weights[PREFIX + name] for name in encoder.state_dict()})
    task, steps = shown(getattr(arguments, "downstream", "a task")).strip("'"), shown(content.get("Step"))
    return Student(encoder, source, f"Fine-tuned with s3prl on {task}, up to step {steps}.")


def _is_downstream(content: Mapping[str, Any]) -> bool:
    return isinstance(content.get("Args"), Namespace) and "Config" in content and "Downstream" in content


def _original(path: Path, source: str, model_config: Any) -> SpeechEncoder:
    """The student before it was fine-tuned, for its configuration."""
    try:
        return load(source, parse_model_config(model_config)[0])
    except UserError as error:
        raise UserError(f"{path} was fine-tuned from another checkpoint: {error}; give it with --student") from None


def _check_weights(path: Path, weights: Mapping[Any, Any], encoder: SpeechEncoder) -> None:
    expected = {PREFIX + name: value.shape for name, value in encoder.state_dict().items()}
    missing, unknown = sorted(expected.keys() - weights.keys()), sorted(map(str, weights.keys() - expected.keys()))
    for problem, names in (("lacks", missing), ("also contains", unknown)):
        if names:
            raise UserError(f"{path} does not belong to this student: its upstream {problem} {', '.join(names[:3])}")
    for name, shape in expected.items():
        if not isinstance(weights[name], Tensor) or weights[name].shape != shape:
            found = tuple(getattr(weights[name], "shape", ()))
            raise UserError(
                f"{path} does not belong to this student: its {name} has shape {found}, but must have {tuple(shape)}"
            )
