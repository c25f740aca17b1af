"""The weights of a featurizer: learned by s3prl with a downstream task, or written by hand."""

import json
import math
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from upstream.errors import UserError
from upstream.files import parse_errors
from upstream.formats.files import read_text, read_torch

FEATURIZER, WEIGHTS = "Featurizer", "weights"  # keys of s3prl's checkpoints


def read_weights(path: Path) -> list[float]:
    """The layers' weights: the numbers of a JSON list as they are, or the softmax of those in an s3prl checkpoint.

    Raises:
        UserError: neither of the two, or a featurizer that does not sum layers, or that normalises them.
    """
    if path.suffix == ".json":
        return _of_json(path)
    content = read_torch(path)
    featurizer = content.get(FEATURIZER)
    if not isinstance(featurizer, Mapping):
        raise UserError(f"--weights {path} is not an s3prl downstream checkpoint: it contains no {FEATURIZER}")
    weights = featurizer.get(WEIGHTS)
    if not isinstance(weights, Tensor) or weights.ndim != 1 or not len(weights) or not weights.isfinite().all():
        raise UserError(f"--weights {path} has no weights: its featurizer used a single layer, not a weighted sum")
    arguments = content.get("Args")
    if isinstance(arguments, Namespace) and getattr(arguments, "upstream_feature_normalize", False):
        raise UserError(f"--weights {path} comes from a featurizer that normalises every layer, which is not supported")
    return torch.softmax(weights.double(), dim=0).tolist()


def _of_json(path: Path) -> list[float]:
    with parse_errors(path, "a JSON list of numbers"):
        values = json.loads(read_text(path))
    numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
    if not numbers or not values or not all(map(math.isfinite, values)):
        raise UserError(f"--weights {path} is not a JSON list of numbers")
    return [float(value) for value in values]
