"""The files that clustering leaves: cka.csv, similarity.png and, last, clusters.json, each written atomically."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from distiller.clustering.figure import similarity_figure
from distiller.clustering.tree import Clustering, representative
from distiller.common.files import write_csv, write_json
from distiller.objectives.config import ClustersConfig, LayerZero
from upstream.errors import UserError

CLUSTERS, MATRIX, FIGURE = "clusters.json", "cka.csv", "similarity.png"


@dataclass(frozen=True)
class Similarity:
    """CKA between layers of a teacher, and what it was measured on."""

    layers: list[int]
    cka: np.ndarray  # (layer, layer), in the order of `layers`
    calibration: dict[str, Any]  # for clusters.json

    def layers_of(self, clustering: Clustering) -> list[list[int]]:
        """The clusters as layers of the teacher."""
        return [[self.layers[place] for place in cluster] for cluster in clustering.clusters]


def layer_names(layers: Sequence[int], layer_zero: LayerZero) -> list[str]:
    """As figures and tables call them: P or F⁰, then numbers."""
    first = "P" if layer_zero == "feature_projection" else "F⁰"
    return [str(layer) if layer else first for layer in layers]


def write_matrix(path: Path, similarity: Similarity, layer_zero: LayerZero) -> None:
    """CKA as CSV, a row and a column per layer."""
    names = layer_names(similarity.layers, layer_zero)
    values = [[f"{value:.8f}" for value in row] for row in similarity.cka]
    write_csv(
        path, [{"layer": name} | dict(zip(names, row, strict=True)) for name, row in zip(names, values, strict=True)]
    )


def write_clusters(
    output: Path,
    similarity: Similarity,
    tree: np.ndarray,
    clustering: Clustering,
    config: ClustersConfig,
    title: str = "",
    ending: str = "",
) -> None:
    """similarity.png, then clusters.json, of one clustering; `ending` goes into both names."""
    names = layer_names(similarity.layers, config.layer_zero)
    figure, record = (output / name.replace(".", f"{ending}.") for name in (FIGURE, CLUSTERS))
    title = ", ".join(part for part in (title, f"{len(clustering.clusters)} clusters") if part)
    similarity_figure(figure, similarity.cka, tree, clustering.clusters, names, title)
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


def read_clusters(path: Path, config: ClustersConfig) -> ClustersConfig:
    """`config` with the clusters of a clusters.json, and the representative of each.

    Raises:
        UserError: the file is not what `write_clusters` wrote.
    """
    try:
        values = json.loads(path.read_text())
        layers, clusters, cka = values["layers"], values["clusters"], np.array(values["cka"], dtype=float)
        places = [[layers.index(layer) for layer in cluster] for cluster in clusters]
        representatives = [layers[representative(cka, cluster)] for cluster in places]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path} cannot be read: {type(error).__name__} {error}") from error
    return replace(config, clusters=clusters, representatives=representatives)
