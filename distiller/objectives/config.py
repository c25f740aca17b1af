"""The objective section of a recipe."""

import math
from dataclasses import dataclass, field
from typing import Literal

from upstream.errors import UserError, require

Zeroth = Literal["projected", "layer_input"]  # what layer 0 is: P or F^0


@dataclass
class LayersConfig:
    """DPHuBERT's objective: chosen layers, with one projection for all but layer 0, which has its own."""

    name: str = "layers"
    layers: list[int] | None = None  # of the teacher; left out: 0 and every third of its depth (0, 4, 8, 12)
    layer_map: list[int] | None = None  # see student_layers
    zeroth: Zeroth = "projected"
    l1_weight: float = 1.0
    cosine_weight: float = 1.0

    def validate(self) -> None:
        require(self.layers is None or len(self.layers) > 0, "objective.layers", self.layers, "at least one layer")
        for key in ("l1_weight", "cosine_weight"):
            require(getattr(self, key) >= 0, f"objective.{key}", getattr(self, key), "a number of at least 0")
        require(self.l1_weight + self.cosine_weight > 0, "objective.l1_weight", 0, "above 0 where cosine_weight is 0")


@dataclass
class PredictionsConfig(LayersConfig):
    """DistilHuBERT's objective: a head per teacher layer, all on the student's last hidden state."""

    name: str = "predictions"
    layers: list[int] | None = None  # of the teacher; left out: every third of its depth (4, 8, 12)

    def validate(self) -> None:
        super().validate()
        require(self.layer_map is None, "objective.layer_map", self.layer_map, "null: every head reads the last layer")


@dataclass
class CalibrationConfig:
    """What the teacher's layers are compared on."""

    corpus: str | None = None  # embedded, a folder or a manifest, all of it; left out: the audio that is trained on
    frames: int | None = None  # at least so many, after the stride; left out: 20 times the teacher's width
    stride: int = 5  # every n-th frame is taken
    debiased: bool = False  # the debiased estimator of CKA, for few frames

    def validate(self) -> None:
        key = "objective.calibration"
        places = "embedded, a folder, a file, or null for the audio that is trained on"
        require(self.corpus != "", f"{key}.corpus", self.corpus, places)
        require(self.frames is None or self.frames >= 4, f"{key}.frames", self.frames, "an integer of at least 4")
        require(self.stride >= 1, f"{key}.stride", self.stride, "an integer of at least 1")


@dataclass
class ClustersConfig(LayersConfig):
    """SKILL's objective. `clusters` set by hand replaces calibration and clustering."""

    name: str = "clusters"
    layers: list[int] | None = None  # that are clustered; left out: all, layer 0 included
    clusters: list[list[int]] | None = None
    representatives: list[int] | None = None  # per cluster, for target=representative
    count: int | str = "auto"  # of clusters; auto: the one with the highest silhouette
    linkage: Literal["average", "complete", "single", "weighted"] = "average"
    contiguous: bool = False  # whether a cluster must be a run of layers
    target: Literal["mean", "representative"] = "mean"  # or the layer most similar to the cluster's others
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)

    def validate(self) -> None:
        super().validate()
        automatic = self.count == "auto" or (isinstance(self.count, int) and self.count >= 1)
        require(automatic, "objective.count", self.count, "auto or an integer of at least 1")
        if self.clusters is not None:
            placed = [layer for cluster in self.clusters for layer in cluster]
            disjoint = bool(placed) and all(self.clusters) and len(placed) == len(set(placed))
            require(disjoint, "objective.clusters", self.clusters, "lists of layers, none empty, no layer twice")
        if self.representatives is not None:
            pairs = list(zip(self.clusters or [], self.representatives, strict=False))
            fits = len(pairs) == len(self.representatives) == len(self.clusters or []) and all(
                layer in cluster for cluster, layer in pairs
            )
            require(fits, "objective.representatives", self.representatives, "a layer of each of objective.clusters")


SCALINGS = ("none", "width", "unit", "centred")


ATTENTION_TERMS = ("average_attention", "last_attention")


GRAM_LAGS = {"layer_wise": 0, "intra_layer": 1}  # how many layers below F^l the other factor of its Gram matrix is


CHOICES = {
    "scaling": SCALINGS,
    "zeroth": ("layer_input", "projected"),
    "identity": ("auto", "never"),
}


@dataclass
class StarConfig:
    """A recipe's `objective` section; weights of 0 leave a term out."""

    name: str = "star"
    average_attention: float = 0.0
    last_attention: float = 0.0
    layer_wise: float = 1.0
    intra_layer: float = 1.0
    scaling: str = "none"  # of the Gram matrices, see `gram.gram_features`; the paper's are raw
    zeroth: str = "layer_input"  # what layer 1's input is taken to be: F^0, or "projected" for P
    layer_map: list[int] | None = None  # teacher layer (1..L_T) of each student layer; default: evenly spaced
    relative: bool = False  # each layer's term over the teacher's own squared Gram norm, and the mean over layers
    identity: str = "auto"  # "never" keeps to the direct form

    def validate(self) -> None:
        """
        Raises:
            UserError: a value out of range, naming its key and what is allowed.
        """
        weights = {key: getattr(self, key) for key in (*ATTENTION_TERMS, *GRAM_LAGS)}
        for key, weight in weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise UserError(f"objective.{key} is {weight}; a weight must be a finite number of at least 0")
        if not any(weights.values()):
            raise UserError(f"objective: {', '.join(weights)} are all 0; at least one weight must be above 0")
        for key, allowed in CHOICES.items():
            if getattr(self, key) not in allowed:
                raise UserError(f"objective.{key} is '{getattr(self, key)}'; allowed are {', '.join(allowed)}")
