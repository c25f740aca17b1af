"""Agglomerative clustering of a teacher's layers on 1 - CKA (SKILL, arXiv 2402.16830, section 3).

Clusters hold positions 0..n-1 in the matrix; which layer a position is, the caller knows.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import linkage as scipy_linkage
from scipy.spatial.distance import squareform

from upstream.errors import UserError

# Those that are defined for any dissimilarity. Ward, centroid and median need Euclidean distances, which 1 - CKA is
# not.
LINKAGES = ("average", "complete", "single", "weighted")


@dataclass(frozen=True)
class Clustering:
    """Clusters and how well they separate.

    silhouette: mean over layers of (b - a) / max(a, b), a = mean distance to the own cluster's other layers, b = to
    the nearest other cluster; 0 for a singleton. within, between: mean CKA of two layers of one cluster, of two
    clusters (NaN if none).
    """

    clusters: list[list[int]]
    silhouette: float
    within: float
    between: float


def layer_tree(cka: np.ndarray, linkage: str = "average", contiguous: bool = False) -> np.ndarray:
    """SciPy linkage matrix (n - 1, 4) of n layers on 1 - CKA.

    `contiguous` allows merges of neighbouring clusters only, so that every cluster is a run of layers. The child
    with the smaller mean layer is on the left, so that a dendrogram keeps the layers' order wherever it can.

    Args:
        cka: (n, n), symmetric.
        linkage: one of LINKAGES.

    Raises:
        UserError: an unknown linkage.
    """
    if linkage not in LINKAGES:
        raise UserError(f"linkage {linkage!r} is not one of {', '.join(LINKAGES)}")
    if len(cka) < 2:
        return np.zeros((0, 4))
    distance = _distance(cka)
    tree = _contiguous_tree(distance, linkage) if contiguous else scipy_linkage(squareform(distance), linkage)
    return _oriented(tree)


def cut_tree(tree: np.ndarray, count: int) -> list[list[int]]:
    """Exactly `count` clusters, by the tree's first n - count merges: sorted layers, ordered by the first of each.

    SciPy's own fcluster gives fewer clusters when merges tie, and none at all for the inversions that contiguous
    trees can have.

    Raises:
        UserError: more clusters than layers, or none.
    """
    layers = len(tree) + 1
    if not 1 <= count <= layers:
        raise UserError(f"{count} clusters cannot be made of {layers} layers; between 1 and {layers} can")
    members = {index: [index] for index in range(layers)}
    for step, (left, right) in enumerate(tree[: layers - count, :2].astype(int)):
        members[layers + step] = sorted(members.pop(left) + members.pop(right))
    return sorted(members.values())


def separation(cka: np.ndarray, clusters: list[list[int]]) -> Clustering:
    """Silhouette and mean CKA within and between `clusters`."""
    label = np.empty(len(cka), dtype=int)
    for index, cluster in enumerate(clusters):
        label[cluster] = index
    same = label[:, None] == label[None, :]
    pairs = np.triu(np.ones_like(same), 1)
    within, between = (
        float(cka[chosen].mean()) if chosen.any() else math.nan for chosen in (pairs & same, pairs & ~same)
    )
    return Clustering(clusters, _silhouette(_distance(cka), clusters), within, between)


def automatic_count(cka: np.ndarray, tree: np.ndarray) -> int:
    """The count from 2 to n - 1 with the highest silhouette, the smaller on a tie (our choice; the paper does not
    say).

    With fewer than 3 layers there is nothing to choose: each is its own cluster.
    """
    layers = len(cka)
    if layers < 3:
        return layers
    scores = {count: separation(cka, cut_tree(tree, count)).silhouette for count in range(2, layers)}
    return min(scores, key=lambda count: (-round(scores[count], 9), count))


def representative(cka: np.ndarray, cluster: list[int]) -> int:
    """The cluster's medoid: the layer most similar to the cluster's others, the earlier on a tie."""
    means = cka[np.ix_(cluster, cluster)].mean(axis=1)
    return cluster[int(np.argmax(np.round(means, 12)))]


def _distance(cka: np.ndarray) -> np.ndarray:
    distance = np.clip(1 - (cka + cka.T) / 2, 0, None)  # the debiased estimator can pass 1 by a hair
    np.fill_diagonal(distance, 0)
    return distance


def _silhouette(distance: np.ndarray, clusters: list[list[int]]) -> float:
    if len(clusters) < 2:
        return 0.0
    scores = np.zeros(len(distance))
    for cluster in clusters:
        if len(cluster) == 1:
            continue
        own = distance[np.ix_(cluster, cluster)].sum(axis=1) / (len(cluster) - 1)
        others = [distance[np.ix_(cluster, other)].mean(axis=1) for other in clusters if other is not cluster]
        nearest = np.min(others, axis=0)
        largest = np.maximum(own, nearest)
        scores[cluster] = np.divide(nearest - own, largest, out=np.zeros_like(own), where=largest > 0)
    return float(scores.mean())


def _contiguous_tree(distance: np.ndarray, linkage: str) -> np.ndarray:
    """Merge the closest two neighbouring clusters until one is left; distances follow Lance and Williams' update."""
    layers = len(distance)
    runs, sizes = list(range(layers)), [1] * layers
    between = distance.copy()  # between[i, j]: distance of the i-th and j-th run
    tree = np.zeros((layers - 1, 4))
    for step in range(layers - 1):
        left = int(np.argmin(np.diagonal(between, 1)))
        total = sizes[left] + sizes[left + 1]
        tree[step] = runs[left], runs[left + 1], between[left, left + 1], total
        rows = between[[left, left + 1]]
        merged = {
            "average": (sizes[left] * rows[0] + sizes[left + 1] * rows[1]) / total,
            "weighted": rows.mean(axis=0),
            "complete": rows.max(axis=0),
            "single": rows.min(axis=0),
        }[linkage]
        between[left], between[:, left] = merged, merged
        between = np.delete(np.delete(between, left + 1, 0), left + 1, 1)
        between[left, left] = 0
        runs[left : left + 2], sizes[left : left + 2] = [layers + step], [total]
    return tree


def _oriented(tree: np.ndarray) -> np.ndarray:
    layers = len(tree) + 1
    total, size = list(range(layers)), [1] * layers
    oriented = tree.copy()
    for row in oriented:
        left, right = sorted(row[:2].astype(int), key=lambda node: total[node] / size[node])
        row[:2] = left, right
        total.append(total[left] + total[right])
        size.append(size[left] + size[right])
    return oriented
