"""The objective section of a recipe."""

import re
from collections.abc import Callable
from dataclasses import field, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StrictInt, model_validator
from pydantic.dataclasses import dataclass

from distiller.common.strict import ABOVE_0, AT_LEAST_0, AT_LEAST_1, STRICT, Text, check
from upstream.errors import UserError, require

LayerZero = Literal["feature_projection", "transformer_input"]  # P or F^0
Scaling = Literal["none", "width", "unit", "centred"]  # of Gram matrices, see `gram.gram_features`
LayerList = list[StrictInt]
ATTENTION_TERMS = ("average_attention", "last_attention")
GRAM_LAGS = {"layer_wise": 0, "intra_layer": 1}  # the other factor of the Gram matrix is this many layers below F^l


@dataclass(config=STRICT)
class ObjectiveConfig:
    """Base of all objective sections; a subclass gives `name` its own name as default."""

    key: ClassVar[str] = "objective"  # where the section is in a recipe, for errors
    needs_teacher: ClassVar[bool] = True  # whether a training step runs the teacher
    weight: ClassVar[float] = 1.0  # of its terms; a field if the objective is part of a sum
    sum_defaults: ClassVar[dict[str, Any]] = {}  # defaults that only apply in a sum
    of_teacher: ClassVar[str | None] = None  # the key that names layers of the teacher, if there is one

    name: str = ""

    def parts(self) -> list["ObjectiveConfig"]:
        """The sections of a sum's parts; of any other objective, the section itself."""
        return [self]

    def with_parts(self, change: Callable[["ObjectiveConfig"], "ObjectiveConfig"]) -> "ObjectiveConfig":
        """A copy in which `change` has replaced each part."""
        return change(self)

    def check_several_teachers(self) -> None:
        """Raises UserError where a mean over several teachers would make no sense."""


@dataclass(config=STRICT)
class SumConfig(ObjectiveConfig):
    """Base of the sections of sums: `registry.config_class` adds one for each part, with a weight."""

    def parts(self) -> list[ObjectiveConfig]:
        return [getattr(self, name) for name in self.name.split("+")]

    def with_parts(self, change: Callable[[ObjectiveConfig], ObjectiveConfig]) -> ObjectiveConfig:
        return replace(self, **{part.name: change(part) for part in self.parts()})


@dataclass(config=STRICT)
class LayersConfig(ObjectiveConfig):
    """DPHuBERT's objective: chosen layers, with one projection for all but layer 0, which has its own."""

    of_teacher: ClassVar[str | None] = "layers"

    name: str = "layers"
    # of the teacher; left out: 0 and every third of its depth (0, 4, 8, 12)
    layers: Annotated[LayerList | None, Field(min_length=1, description="at least one layer")] = None
    layer_map: LayerList | None = None  # see `layer_map.student_layers`
    layer_zero: LayerZero = "feature_projection"
    l1_weight: Annotated[float, AT_LEAST_0] = 1.0
    cosine_weight: Annotated[float, AT_LEAST_0] = 1.0

    @model_validator(mode="after")
    def _some_weight(self) -> "LayersConfig":
        both = self.l1_weight + self.cosine_weight
        require(both > 0, f"{self.key}.l1_weight", 0, "above 0 where cosine_weight is 0")
        return self


@dataclass(config=STRICT)
class PredictionsConfig(LayersConfig):
    """DistilHuBERT's objective: a projection per teacher layer, all from the student's last hidden state.

    `layers` left out: every third of the teacher's depth (4, 8, 12).
    """

    name: str = "predictions"
    layer_map: Annotated[None, Field(description="null: every projection reads the last layer")] = None  # type: ignore


@dataclass(config=STRICT)
class CalibrationConfig:
    """The audio and frames on which the teacher's layers are compared."""

    # synthetic, a folder or a manifest, all of it is used; left out: the training audio
    corpus: Annotated[
        Text | None,
        check(lambda corpus: corpus != ""),
        Field(description="synthetic, a folder, a file, or null for the audio that is trained on"),
    ] = None
    # minimum, after the stride; left out: 20 times the teacher's width
    frames: Annotated[int | None, Field(ge=4, description="an integer of at least 4")] = None
    stride: Annotated[int, AT_LEAST_1] = 5  # every n-th frame is taken
    debiased: bool = False  # the debiased estimator of CKA, for few frames


@dataclass(config=STRICT)
class ClustersConfig(LayersConfig):
    """SKILL's objective. `clusters` set by hand replaces calibration and clustering.

    `layers` are those to cluster; left out: all, layer 0 included.
    """

    name: str = "clusters"
    clusters: Annotated[
        list[LayerList] | None,
        check(lambda clusters: clusters is None or (bool(clusters) and all(clusters) and _no_layer_twice(clusters))),
        Field(description="lists of layers, none empty, no layer twice"),
    ] = None
    representatives: LayerList | None = None  # per cluster, for target=representative
    count: Annotated[
        int | str,
        check(lambda count: bool(re.fullmatch(r"auto|[1-9]\d*", str(count)))),
        Field(description="auto or an integer of at least 1"),
    ] = "auto"  # of clusters; auto: the one with the highest silhouette
    linkage: Literal["average", "complete", "single", "weighted"] = "average"
    contiguous: bool = False  # whether a cluster must be a run of layers
    target: Literal["mean", "representative"] = "mean"  # or the layer most similar to the cluster's others
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)

    @model_validator(mode="after")
    def _representatives_of_the_clusters(self) -> "ClustersConfig":
        clusters, layers = self.clusters or [], self.representatives
        if layers is not None:
            fits = len(layers) == len(clusters) and all(map(lambda layer, cluster: layer in cluster, layers, clusters))
            require(fits, f"{self.key}.representatives", layers, f"one layer of each cluster of {self.key}.clusters")
        return self


def _no_layer_twice(clusters: list[list[int]]) -> bool:
    layers = [layer for cluster in clusters for layer in cluster]
    return len(layers) == len(set(layers))


@dataclass(config=STRICT)
class StarConfig(ObjectiveConfig):
    """STaR's objective; a weight of 0 leaves a term out."""

    of_teacher: ClassVar[str | None] = "layer_map"

    name: str = "star"
    average_attention: Annotated[float, AT_LEAST_0] = 0.0
    last_attention: Annotated[float, AT_LEAST_0] = 0.0
    layer_wise: Annotated[float, AT_LEAST_0] = 1.0
    intra_layer: Annotated[float, AT_LEAST_0] = 1.0
    scaling: Scaling = "none"  # the paper's Gram matrices are raw
    layer_zero: LayerZero = "transformer_input"  # what is used as layer 1's input
    layer_map: LayerList | None = None  # teacher layer (1..L_T) of each student layer; default: evenly spaced
    relative: bool = False  # each layer's term is divided by the teacher's squared Gram norm; mean over layers
    # auto: the distance from channel matrices on a CPU, where it is cheaper; never: only the direct form
    identity: Literal["auto", "never"] = "auto"
    gram_precision: Literal["tf32", "ieee"] = "tf32"  # of the Gram matrices' products on CUDA; ieee: fp32 as written

    @model_validator(mode="after")
    def _some_weight(self) -> "StarConfig":
        keys = (*ATTENTION_TERMS, *GRAM_LAGS)
        if not any(getattr(self, key) for key in keys):
            raise UserError(f"{self.key}: {', '.join(keys)} are all 0; at least one weight must be above 0")
        return self

    def check_several_teachers(self) -> None:
        if any(getattr(self, key) for key in GRAM_LAGS):
            allowed = "centred or unit with several teachers, whose raw Gram matrices have different norms"
            require(self.scaling in ("centred", "unit"), f"{self.key}.scaling", self.scaling, allowed)


@dataclass(config=STRICT)
class UnitsObjectiveConfig(ObjectiveConfig):
    """Cross-entropy against the units of distiller/targets.py; the defaults are HuBERT's masked prediction.

    In a sum nothing is masked by default, as the other parts compare frames of the same forward pass.
    """

    needs_teacher: ClassVar[bool] = False
    weight: ClassVar[float] = 1.0  # of its terms; a field if the objective is part of a sum
    sum_defaults: ClassVar[dict[str, Any]] = {"mask_probability": 0.0}

    name: str = "units"
    targets: Annotated[Text | None, check(lambda folder: folder != "")] = None  # folder of distiller/targets.py
    # of the student, each with its own predictions; left out: the last; their losses are averaged
    student_layers: Annotated[LayerList | None, Field(min_length=1, description="at least one layer")] = None
    mask_probability: Annotated[float, Field(ge=0, le=1, description="a probability from 0 to 1")] = 0.8
    mask_span: Annotated[int, AT_LEAST_1] = 10  # frames; mask_probability / mask_span of all frames start one
    masked_weight: Annotated[float, AT_LEAST_0] = 1.0
    unmasked_weight: Annotated[float | None, AT_LEAST_0] = None  # left out: 0, or 1 where nothing is masked
    feature_penalty: Annotated[float, AT_LEAST_0] = 10.0  # on the convolutions' mean square; with masking only
    width: Annotated[int, AT_LEAST_1] = 256  # of the projected frames and the units' embeddings
    temperature: Annotated[float, ABOVE_0] = 0.1  # of the cosine logits
    # 0: hard units; else the temperature of soft ones, softmax(-squared distance from the centroids / this)
    soft: Annotated[float, AT_LEAST_0] = 0.0

    @model_validator(mode="after")
    def _some_frames(self) -> "UnitsObjectiveConfig":
        if self.unmasked_weight is None:
            self.unmasked_weight = float(not self.mask_probability)
        if not self.mask_probability:
            above = "above 0 where mask_probability is 0, which leaves unmasked frames only"
            require(self.unmasked_weight > 0, f"{self.key}.unmasked_weight", self.unmasked_weight, above)
        total = self.masked_weight + self.unmasked_weight
        require(total > 0, f"{self.key}.masked_weight", 0, "above 0 where unmasked_weight is 0")
        layers = self.student_layers
        distinct = layers is None or len(set(layers)) == len(layers)
        require(distinct, f"{self.key}.student_layers", layers, "different layers")
        return self
