"""SKILL (arXiv 2402.16830): the mean of each cluster of similar teacher layers is distilled.

Target k is the mean over the teacher layers of cluster k, the prediction one linear projection of the mean over the
student's layers of the same cluster, the loss L1 - cos per cluster, averaged over clusters. So a layer's influence is
inversely proportional to its cluster's size. Clusters come from `distiller.clustering`.
"""

from torch import nn

from distiller.objectives.config import ClustersConfig
from distiller.objectives.layer_map import check_layers, student_layers
from distiller.objectives.layers import LayerMatching, Match, projection
from upstream.config import EncoderConfig
from upstream.errors import UserError


class Clusters(LayerMatching):
    """One match and one projection per cluster; with target=representative each cluster is its representative alone."""

    def plan(
        self, config: ClustersConfig, teacher: EncoderConfig, student: EncoderConfig
    ) -> tuple[list[Match], list[nn.Module]]:
        matches = []
        for index, group in enumerate(_groups(config)):
            check_layers(group, teacher.num_layers, "objective.clusters")
            followers = student_layers(group, teacher.num_layers, student.num_layers, config.layer_map)
            matches.append(Match(tuple(group), followers, index))
        return matches, [projection(student.embed_dim, teacher.embed_dim) for _ in matches]


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
