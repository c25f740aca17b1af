"""The figure of a teacher's layers: a CKA heat map with a dendrogram, clusters marked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from scipy.cluster.hierarchy import dendrogram

from distiller.common.plotting import save_figure

MAP = "viridis"
BRANCH = "#8a8a8a"  # above the clusters
COLOURS = [to_hex(f"tab:{name}") for name in ("blue", "orange", "green", "red", "purple", "brown", "pink", "cyan")]
MARK = "#ffffff"
WRITTEN = 16  # up to this many layers every cell shows its number


def similarity_figure(
    path: Path, cka: np.ndarray, tree: np.ndarray, clusters: Sequence[Sequence[int]], labels: Sequence[str], title: str
) -> None:
    """Draw `path`.

    Args:
        cka: (layer, layer).
        tree: their linkage matrix, from `layer_tree`.
        clusters: positions in `cka`, from `tree_clusters`.
        labels: of the layers.
    """
    count = len(cka)
    side = 2.8 + 0.33 * count
    figure, (tree_axes, axes) = plt.subplots(
        1, 2, figsize=(side * 1.42, side), width_ratios=(0.34, 1), layout="constrained", sharey=True
    )
    figure.suptitle(title)
    cluster_of = {layer: index for index, cluster in enumerate(clusters) for layer in cluster}
    order = _draw_tree(tree_axes, tree, [cluster_of[layer] for layer in range(count)])
    image = _draw_matrix(axes, cka[np.ix_(order, order)])
    _mark(axes, order, clusters)
    axes.set_xticks(range(count), [labels[layer] for layer in order])
    axes.set_yticks(range(count), [labels[layer] for layer in order])
    axes.set(xlabel="layer", ylim=(count - 0.5, -0.5))
    axes.tick_params(length=0, labelleft=True)
    for axis in (axes.get_xticklabels(), axes.get_yticklabels()):
        for tick, layer in zip(axis, order, strict=True):
            tick.set(color=_colour(cluster_of[layer]), fontweight="bold")
    figure.colorbar(image, ax=axes, label="linear CKA", shrink=0.82, pad=0.02)
    save_figure(figure, path)


def _colour(cluster: int | None) -> str:
    """A colour that differs from neighbours', dark enough for text."""
    return BRANCH if cluster is None else COLOURS[cluster % len(COLOURS)]


def _draw_tree(axes: Any, tree: np.ndarray, cluster_of: list[int]) -> list[int]:
    """A dendrogram whose leaves face right, branches inside a cluster in its colour; returns the leaves' order."""
    order = [0]
    if len(tree):
        nodes: list[int | None] = [*cluster_of]  # the cluster that each node is inside, layers first
        for first, second in tree[:, :2].astype(int):
            nodes.append(nodes[first] if nodes[first] == nodes[second] else None)
        drawn = dendrogram(tree, no_plot=True, link_color_func=lambda node: _colour(nodes[node]))
        order = drawn["leaves"]
        for places, heights, colour in zip(drawn["icoord"], drawn["dcoord"], drawn["color_list"], strict=True):
            rows = [(place - 5) / 10 for place in places]  # SciPy puts leaf i at 10 i + 5
            axes.plot(heights, rows, color=colour, linewidth=1.6, solid_joinstyle="round")
    axes.invert_xaxis()
    axes.xaxis.set_major_locator(MaxNLocator(2))
    axes.set(xlabel="1 $-$ CKA")
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0, labelleft=False)
    return order


def _draw_matrix(axes: Any, cka: np.ndarray) -> Any:
    lowest = min(0.9, float(np.floor(20 * np.nanmin(cka)) / 20))
    image = axes.imshow(cka, cmap=MAP, vmin=lowest, vmax=1, aspect="equal")
    axes.spines[:].set_visible(False)
    if len(cka) <= WRITTEN:
        for row, column in np.ndindex(cka.shape):
            if row != column:
                value = cka[row, column]
                light = (value - lowest) / (1 - lowest) > 0.6
                text = f"{value:.2f}".removeprefix("0") if value < 0.995 else "1."
                shade = "#1b1b1b" if light else "#f4f4f4"
                axes.text(column, row, text, ha="center", va="center", fontsize=6.5, color=shade)
    return image


def _mark(axes: Any, order: Sequence[int], clusters: Sequence[Sequence[int]]) -> None:
    """A frame around each cluster, which is a run of the tree's leaves."""
    for cluster in clusters:
        first, side = min(order.index(layer) for layer in cluster) - 0.46, len(cluster) - 0.08  # inside its cells
        frame = Rectangle((first, first), side, side, fill=False, edgecolor=MARK, linewidth=2.2, joinstyle="round")
        frame.set_path_effects([withStroke(linewidth=3.6, foreground="#1b1b1b")])
        axes.add_patch(frame)
