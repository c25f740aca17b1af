"""The objectives by name."""

import difflib
import importlib
from typing import Any

from distiller.objectives.base import Objective
from upstream.config import EncoderConfig
from upstream.errors import UserError

# name in a recipe -> "module:class"; imported on demand, since each module imports this one for the base class
OBJECTIVES: dict[str, str] = {
    "star": "distiller.objectives.star:Star",
    "clusters": "distiller.objectives.clusters:Clusters",
    "layers": "distiller.objectives.layers:Layers",
    "predictions": "distiller.objectives.layers:Predictions",
}


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
