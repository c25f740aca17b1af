"""Agglomerative clustering of a teacher's layers on 1 - CKA (SKILL, arXiv 2402.16830, section 3).

Clusters hold positions 0..n-1 in the matrix; the caller knows which layer each position is.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from scipy.cluster.hierarchy import linkage as scipy_linkage
from scipy.spatial.distance import squareform

from upstream.errors import UserError, one_of, require

# The linkages defined for any dissimilarity; Ward, centroid and median need Euclidean distances, which 1 - CKA is not.
LINKAGES = ("average", "complete", "single", "weighted")


@dataclass(frozen=True)
class Clustering:
    """Clusters and how well they separate.

    silhouette: mean over layers of (b - a) / max(a, b), where a is the mean distance to the other layers of its
    cluster, b to the nearest other cluster; 0 for a singleton. within, between: mean CKA of two layers of the same
    cluster, of two clusters (NaN if there are none).
    """

    clusters: list[list[int]]
    silhouette: float
    within: float
    between: float


def layer_tree(cka: np.ndarray, linkage: str = "average", contiguous: bool = False) -> np.ndarray:
    """SciPy linkage matrix (n - 1, 4) of n layers on 1 - CKA.

    The child with the smaller mean layer comes first, so that a dendrogram keeps the layers' order wherever it can.

    Args:
        cka: (n, n), symmetric.
        linkage: one of LINKAGES.
        contiguous: merge neighbouring clusters only, so that every cluster is a run of layers.

    Raises:
        UserError: an unknown linkage.
    """
    require(linkage in LINKAGES, "linkage", linkage, one_of(linkage, LINKAGES))
    if len(cka) < 2:
        return np.zeros((0, 4))
    distance = _distance(cka)
    tree = _contiguous_tree(distance, linkage) if contiguous else scipy_linkage(squareform(distance), linkage)
    return _oriented(tree)


def tree_clusters(tree: np.ndarray, count: int) -> list[list[int]]:
    """Exactly `count` clusters, from the tree's first n - count merges: sorted layers, ordered by the first of each.

    SciPy's fcluster gives fewer clusters when merges tie, and fails for the inversions that contiguous trees can have.

    Raises:
        UserError: more clusters than layers, or none.
    """
    layers = len(tree) + 1
    if not 1 <= count <= layers:
        raise UserError(f"{layers} layers cannot be divided into {count} clusters, only into 1 to {layers}")
    members = {index: [index] for index in range(layers)}
    for step, (first, second) in enumerate(tree[: layers - count, :2].astype(int)):
        members[layers + step] = sorted(members.pop(first) + members.pop(second))
    return sorted(members.values())


def separation(cka: np.ndarray, clusters: list[list[int]]) -> Clustering:
    """Silhouette and mean CKA within and between `clusters`."""
    label = np.empty(len(cka), dtype=int)
    for index, cluster in enumerate(clusters):
        label[cluster] = index
    same = label[:, None] == label[None, :]
    pairs = np.triu(np.ones_like(same), 1)
    within, between = (
        float(cka[selected].mean()) if selected.any() else math.nan for selected in (pairs & same, pairs & ~same)
    )
    return Clustering(clusters, _silhouette(_distance(cka), clusters), within, between)


def clusterings(cka: np.ndarray, tree: np.ndarray, counts: Iterable[int]) -> list[Clustering]:
    """The tree divided into each of `counts` clusters.

    Raises:
        UserError: more clusters than layers, or none.
    """
    return [separation(cka, tree_clusters(tree, count)) for count in counts]


def automatic_count(cka: np.ndarray, tree: np.ndarray) -> int:
    """The count from 2 to n - 1 with the highest silhouette, the smaller on a tie (our choice; the paper has none).

    With fewer than 3 layers each is its own cluster.
    """
    possible = clusterings(cka, tree, range(2, len(cka)))
    best = max(possible, key=lambda clustering: round(clustering.silhouette, 9), default=None)
    return len(best.clusters) if best else len(cka)


def representative(cka: np.ndarray, cluster: list[int]) -> int:
    """The cluster's medoid: the layer most similar to the cluster's others, the earlier on a tie."""
    means = cka[np.ix_(cluster, cluster)].mean(axis=1)
    return cluster[int(np.argmax(np.round(means, 12)))]


def _distance(cka: np.ndarray) -> np.ndarray:
    distance = np.clip(1 - (cka + cka.T) / 2, 0, None)  # the debiased estimator can slightly exceed 1
    np.fill_diagonal(distance, 0)
    return distance


def _silhouette(distance: np.ndarray, clusters: list[list[int]]) -> float:
    if len(clusters) < 2:
        return 0.0
    scores = np.zeros(len(distance))
    for cluster in clusters:
        if len(cluster) == 1:
            continue
        inside = distance[np.ix_(cluster, cluster)].sum(axis=1) / (len(cluster) - 1)
        others = [distance[np.ix_(cluster, other)].mean(axis=1) for other in clusters if other is not cluster]
        nearest = np.min(others, axis=0)
        largest = np.maximum(inside, nearest)
        scores[cluster] = np.divide(nearest - inside, largest, out=np.zeros_like(inside), where=largest > 0)
    return float(scores.mean())


def _contiguous_tree(distance: np.ndarray, linkage: str) -> np.ndarray:
    """Merge the closest two neighbouring clusters until one remains; distances follow Lance and Williams' update."""
    layers = len(distance)
    runs, sizes = list(range(layers)), [1] * layers
    between = distance.copy()  # between[i, j]: distance of the i-th and j-th run
    tree = np.zeros((layers - 1, 4))
    for step in range(layers - 1):
        i = int(np.argmin(np.diagonal(between, 1)))  # merges with i + 1
        total = sizes[i] + sizes[i + 1]
        tree[step] = runs[i], runs[i + 1], between[i, i + 1], total
        rows = between[[i, i + 1]]
        merged = {
            "average": (sizes[i] * rows[0] + sizes[i + 1] * rows[1]) / total,
            "weighted": rows.mean(axis=0),
            "complete": rows.max(axis=0),
            "single": rows.min(axis=0),
        }[linkage]
        between[i], between[:, i] = merged, merged
        between = np.delete(np.delete(between, i + 1, 0), i + 1, 1)
        between[i, i] = 0
        runs[i : i + 2], sizes[i : i + 2] = [layers + step], [total]
    return tree


def _oriented(tree: np.ndarray) -> np.ndarray:
    members = [[layer] for layer in range(len(tree) + 1)]
    oriented = tree.copy()
    for row in oriented:
        row[:2] = sorted(row[:2].astype(int), key=lambda node: fmean(members[node]))
        first, second = row[:2].astype(int)
        members.append(members[first] + members[second])
    return oriented
