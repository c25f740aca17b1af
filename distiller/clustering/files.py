"""The output files of clustering: cka.csv, similarity.png and, last, clusters.json, each written atomically."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from distiller.clustering.figure import similarity_figure
from distiller.clustering.tree import Clustering, automatic_count, clusterings, layer_tree, representative
from distiller.common.files import write_csv, write_json
from distiller.objectives.config import ClustersConfig
from upstream.errors import UserError

CLUSTERS, MATRIX, FIGURE = "clusters.json", "cka.csv", "similarity.png"


@dataclass(frozen=True)
class Similarity:
    """CKA between layers of a teacher, and what it was measured on."""

    layers: list[int]
    cka: np.ndarray  # (layer, layer), in the order of `layers`
    calibration: dict[str, Any]  # for clusters.json

    @property
    def names(self) -> list[str]:
        """The layers as figures and tables call them: P or F⁰, then numbers."""
        first = "P" if self.calibration["layer_zero"] == "feature_projection" else "F⁰"
        return [str(layer) if layer else first for layer in self.layers]

    def layers_of(self, clustering: Clustering) -> list[list[int]]:
        """The clusters as layers of the teacher."""
        return [[self.layers[place] for place in cluster] for cluster in clustering.clusters]


def write_clusterings(
    output: Path, similarity: Similarity, config: ClustersConfig, counts: Sequence[int], title: str = ""
) -> list[Clustering]:
    """Cluster the layers; write cka.csv, then similarity.png and clusters.json of each clustering.

    Args:
        counts: of clusters. The files of the first have these names, those of others end in -COUNT. If empty, the count
            with the highest silhouette is taken.

    Raises:
        UserError: an impossible count.
    """
    tree = layer_tree(similarity.cka, config.linkage, config.contiguous)
    counts = counts or [automatic_count(similarity.cka, tree)]
    written = clusterings(similarity.cka, tree, counts)
    rows = [
        {"layer": name} | {other: f"{value:.8f}" for other, value in zip(similarity.names, row, strict=True)}
        for name, row in zip(similarity.names, similarity.cka, strict=True)
    ]
    write_csv(output / MATRIX, rows)
    for count, clustering in zip(counts, written, strict=True):
        ending = "." if clustering is written[0] else f"-{count}."
        figure, record = (output / name.replace(".", ending) for name in (FIGURE, CLUSTERS))
        heading = ", ".join(part for part in (title, f"{count} clusters") if part)
        similarity_figure(figure, similarity.cka, tree, clustering.clusters, similarity.names, heading)
        numbers = {key: getattr(clustering, key) for key in ("silhouette", "within", "between")}
        values = {
            "layers": similarity.layers,
            "cka": similarity.cka.tolist(),
            "linkage": config.linkage,
            "contiguous": config.contiguous,
            "clusters": similarity.layers_of(clustering),
            "separation": {key: None if math.isnan(value) else value for key, value in numbers.items()},
            "calibration": similarity.calibration,
        }
        write_json(record, values)
    return written


def read_clusters(path: Path, config: ClustersConfig) -> ClustersConfig:
    """`config` with the clusters of a clusters.json, and the representative of each.

    Raises:
        UserError: the file is not what `write_clusterings` wrote.
    """
    try:
        values = json.loads(path.read_text())
        layers, clusters, cka = values["layers"], values["clusters"], np.array(values["cka"], dtype=float)
        places = [[layers.index(layer) for layer in cluster] for cluster in clusters]
        representatives = [layers[representative(cka, cluster)] for cluster in places]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path} cannot be read: {type(error).__name__} {error}") from error
    return replace(config, clusters=clusters, representatives=representatives)
