"""SKILL (arXiv 2402.16830): the mean of each cluster of similar teacher layers is distilled.

Target k is the mean over the teacher layers of cluster k, the prediction one linear projection of the mean over the
student's layers of the same cluster, the loss L1 - cos per cluster, averaged over clusters. So a layer's influence is
inversely proportional to its cluster's size. Clusters come from `distiller.similarity`.
"""

from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from distiller.objectives.layers import LayerMatching, LayersConfig, Match, check_layers, projection, student_layers
from distiller.strict import require
from upstream.config import EncoderConfig
from upstream.errors import UserError


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


class Clusters(LayerMatching):
    """One match and one projection per cluster; with target=representative each cluster is its representative alone."""

    config_class = ClustersConfig

    def plan(
        self, config: ClustersConfig, teacher: EncoderConfig, student: EncoderConfig
    ) -> tuple[list[Match], list[nn.Module]]:
        groups = _groups(config)
        for group in groups:
            check_layers(group, teacher.num_layers, "objective.clusters")
        followers = [
            student_layers(group, teacher.num_layers, student.num_layers, config.layer_map) for group in groups
        ]
        matches = [Match(tuple(group), followers[index], index) for index, group in enumerate(groups)]
        return matches, [projection(student.embed_dim, teacher.embed_dim) for _ in groups]


def _groups(config: ClustersConfig) -> list[list[int]]:
    if config.clusters is None:
        raise UserError(
            "objective.clusters is not set: the teacher's layers have to be clustered first (distiller/similarity.py)"
        )
    if config.target == "mean":
        return config.clusters
    if config.representatives is None:
        raise UserError("objective.target=representative needs objective.representatives beside objective.clusters")
    return [[layer] for layer in config.representatives]
