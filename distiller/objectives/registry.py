"""The objectives by their names in a recipe. Nothing here imports torch before an objective is built."""

from dataclasses import field
from functools import cache
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, cast

from pydantic.dataclasses import dataclass

from distiller.common.strict import ABOVE_0, STRICT
from distiller.objectives.config import (
    ClustersConfig,
    LayersConfig,
    ObjectiveConfig,
    PredictionsConfig,
    StarConfig,
    SumConfig,
    UnitsObjectiveConfig,
)
from upstream.config import EncoderConfig
from upstream.errors import one_of, require

if TYPE_CHECKING:
    from distiller.objectives.base import Objective


class Entry(NamedTuple):
    """The parts of an objective."""

    config: type[ObjectiveConfig]  # class of the recipe's objective section
    implementation: str  # "module:class", a subclass of `Objective`; imported when it is built


OBJECTIVES: dict[str, Entry] = {
    "star": Entry(StarConfig, "distiller.objectives.star:Star"),
    "clusters": Entry(ClustersConfig, "distiller.objectives.layers:Clusters"),
    "layers": Entry(LayersConfig, "distiller.objectives.layers:Layers"),
    "predictions": Entry(PredictionsConfig, "distiller.objectives.layers:Predictions"),
    "units": Entry(UnitsObjectiveConfig, "distiller.objectives.units:Units"),
}


def config_class(name: object) -> type[ObjectiveConfig]:
    """The class of the objective section with that name: an objective, or several as in star+units.

    Raises:
        UserError: an unknown name, or a repeated one.
    """
    parts = name.split("+") if isinstance(name, str) else [name]
    for part in parts:
        known = isinstance(part, str) and part in OBJECTIVES
        require(known, "objective.name", name, one_of(part, OBJECTIVES) + " (star+units is a sum)" * (len(parts) > 1))
    require(len(set(parts)) == len(parts), "objective.name", name, "a sum of different objectives, such as star+units")
    return OBJECTIVES[str(name)].config if len(parts) == 1 else _sum_class(str(name))


@cache
def _sum_class(name: str) -> type[SumConfig]:
    """The section of a sum: a section for each part."""
    parts = {part: _part_class(part) for part in name.split("+")}
    kinds: dict[str, Any] = {"name": str, **parts}
    values: dict[str, Any] = {part: field(default_factory=kind) for part, kind in parts.items()}
    needs_teacher = any(kind.needs_teacher for kind in parts.values())
    body = {"__annotations__": kinds, "name": name, "needs_teacher": needs_teacher, **values}
    return cast(type[SumConfig], dataclass(config=STRICT)(type("SumConfig", (SumConfig,), body)))


@cache
def _part_class(name: str) -> type[ObjectiveConfig]:
    """The section of a sum's part: the objective's own with `sum_defaults`, and the `weight` of its terms."""
    config = OBJECTIVES[name].config
    kinds: dict[str, Any] = {"name": Literal[name], "weight": Annotated[float, ABOVE_0]}  # type: ignore[valid-type]
    kinds |= {key: config.__annotations__[key] for key in config.sum_defaults}
    body = {"__annotations__": kinds, "key": f"objective.{name}", "name": name, "weight": 1.0, **config.sum_defaults}
    return cast(type[ObjectiveConfig], dataclass(config=STRICT)(type(config.__name__, (config,), body)))


def build(config: ObjectiveConfig, teacher_config: EncoderConfig, student_config: EncoderConfig) -> "Objective":
    """The objective that a recipe's section describes.

    Raises:
        UserError: an unknown name, or encoders that the objective cannot compare.
    """
    from distiller.objectives.base import Sum  # imports torch

    parts: dict[str, Objective] = {}
    for part in config.parts():
        require(part.name in OBJECTIVES, f"{part.key}.name", part.name, one_of(part.name, OBJECTIVES))
        implementation = resolve_name(OBJECTIVES[part.name].implementation)
        parts[part.name] = implementation(part, teacher_config, student_config)
    return Sum(config, parts) if isinstance(config, SumConfig) else parts[config.name]
