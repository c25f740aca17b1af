"""The list of teachers in a recipe."""

from dataclasses import replace
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from distiller.common.strict import ABOVE_0, STRICT, Text
from distiller.objectives.config import LayerList, ObjectiveConfig


@dataclass(config=STRICT)
class TeacherConfig:
    """One of several teachers: each has the recipe's objective, with its own `layers` and a share of the loss."""

    path: Text  # bundled, a folder or file, or a hub name
    weight: Annotated[float, ABOVE_0] = 1.0  # relative to the other teachers'
    # replaces the objective's `layers`, or its `layer_map` (star); left out: the objective's
    layers: Annotated[LayerList | None, Field(min_length=1, description="at least one layer")] = None

    def objective(self, section: ObjectiveConfig) -> ObjectiveConfig:
        """The section for this teacher."""

        def own(part: ObjectiveConfig) -> ObjectiveConfig:
            key = part.of_teacher
            return part if key is None or self.layers is None else replace(part, **{key: self.layers})

        return section.with_parts(own)
