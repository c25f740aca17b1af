"""Merging models of the same shape by averaging their weights."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from distiller.common.provenance import public
from distiller.common.values import difference
from distiller.exporters.card import student_files
from distiller.exporters.fine_tuned import Student, open_student
from upstream.checkpoint import save
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError

ONLY_IN_TRAINING = {"feature_dropout", "hidden_dropout", "attention_dropout", "activation_dropout"}


def merge(models: Sequence[str], weights: Sequence[float], output: Path) -> str:
    """Write the average of `models` as a student folder; returns a line that describes it.

    The card names all of them; otherwise it is the first model's, and so is the teacher.

    Args:
        models: different checkpoints, as `open_student` opens them.
        weights: as `averaged`.

    Raises:
        UserError: a checkpoint that cannot be opened, models of different shapes, or the disk refuses.
    """
    opened = {name: open_student(name) for name in models}
    encoder = averaged({name: student.encoder for name, student in opened.items()}, weights)
    parts = [
        f"{weight:g} x `{public(student.source)}`" + (f" ({student.history.rstrip('.')})" if student.history else "")
        for student, weight in zip(opened.values(), weights, strict=True)
    ]
    history = f"Average of the weights of {len(models)} models: {', '.join(parts)}."
    save(encoder, output, student_files(Student(encoder, opened[models[0]].source, history)))
    return f"{output}: {history}"


def averaged(encoders: Mapping[str, SpeechEncoder], weights: Sequence[float]) -> SpeechEncoder:
    """An encoder whose parameters are the weighted sums of the others'.

    With the original, a fine-tuned copy of it, and the weights 1 - alpha and alpha, it is Speech-FT (arXiv 2502.12672).

    Args:
        encoders: by their names in errors; the first provides the configuration.
        weights: one for each, with sum 1; below 0 or above 1 they extrapolate.

    Raises:
        UserError: two encoders have different shapes.
    """
    (first, original), *others = encoders.items()
    for name, other in others:
        if unlike := difference(asdict(original.config), asdict(other.config), ignore=ONLY_IN_TRAINING):
            raise UserError(f"{first} and {name} cannot be merged: they differ in {unlike}")
    states = [encoder.state_dict() for encoder in encoders.values()]
    result = SpeechEncoder(original.config)
    result.load_state_dict(
        {  # summed in float64, so that equal weights of equal models give these models
            key: torch.stack([weight * state[key].double() for weight, state in zip(weights, states, strict=True)])
            .sum(dim=0)
            .to(value.dtype)
            for key, value in states[0].items()
        }
    )
    return result.eval()
