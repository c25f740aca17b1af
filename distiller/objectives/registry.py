"""The objectives by their name in a recipe. Nothing here imports torch before an objective is built."""

from pkgutil import resolve_name
from typing import TYPE_CHECKING, NamedTuple

from distiller.objectives.config import (
    ClustersConfig,
    LayersConfig,
    ObjectiveConfig,
    PredictionsConfig,
    StarConfig,
    UnitsObjectiveConfig,
)
from upstream.config import EncoderConfig
from upstream.errors import one_of, require

if TYPE_CHECKING:
    from distiller.objectives.base import Objective


class Entry(NamedTuple):
    """The parts of an objective."""

    config: type[ObjectiveConfig]  # of the recipe's objective section
    implementation: str  # "module:class", a subclass of `Objective`; imported when it is built


OBJECTIVES: dict[str, Entry] = {
    "star": Entry(StarConfig, "distiller.objectives.star:Star"),
    "clusters": Entry(ClustersConfig, "distiller.objectives.layers:Clusters"),
    "layers": Entry(LayersConfig, "distiller.objectives.layers:Layers"),
    "predictions": Entry(PredictionsConfig, "distiller.objectives.layers:Predictions"),
    "units": Entry(UnitsObjectiveConfig, "distiller.objectives.units:Units"),
}


def build(config: ObjectiveConfig, teacher_config: EncoderConfig, student_config: EncoderConfig) -> "Objective":
    """The objective that a recipe's section describes.

    Raises:
        UserError: an unknown name, or encoders that the objective cannot compare.
    """
    require(config.name in OBJECTIVES, "objective.name", config.name, one_of(config.name, OBJECTIVES))
    return resolve_name(OBJECTIVES[config.name].implementation)(config, teacher_config, student_config)
