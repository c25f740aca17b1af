"""A comparison of a teacher's layers that trains nothing: CKA, several clusterings, and how well each separates."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from distiller.clustering.calibrate import calibrate
from distiller.clustering.files import (
    CLUSTERS,
    FIGURE,
    MATRIX,
    Similarity,
    layer_names,
    write_clusters,
    write_matrix,
)
from distiller.clustering.tree import Clustering, automatic_count, cut_tree, layer_tree, separation
from distiller.corpora.config import CorpusConfig
from distiller.objectives.config import ClustersConfig, Zeroth
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError


def compare(
    config: ClustersConfig,
    teacher: SpeechEncoder,
    counts: Sequence[int],
    seed: int,
    device: str,
    output: Path,
    title: str,
) -> list[list[int]]:
    """Compare, write cka.csv, clusters.json and similarity.png, print the clusterings; returns the first one's layers.

    Args:
        counts: of clusters, each with its files; the first has these names, those of others end in -COUNT. None: the
            one with the highest silhouette, and all possible ones are printed.

    Raises:
        UserError: as `calibrate`, or a count that is impossible.
    """
    similarity = calibrate(config, teacher, CorpusConfig(), None, seed, device)
    tree = layer_tree(similarity.cka, config.linkage, config.contiguous)

    def clustering(count: int) -> Clustering:
        return separation(similarity.cka, cut_tree(tree, count))

    chosen = [clustering(count) for count in counts or [automatic_count(similarity.cka, tree)]]
    write_matrix(output / MATRIX, similarity, config.zeroth)
    for place, one in enumerate(chosen):
        ending = f"-{len(one.clusters)}" if place else ""
        write_clusters(output, similarity, tree, one, config, title, ending)
    shown = [clustering(count) for count in counts or range(2, len(similarity.layers))] or chosen
    print_table(similarity, shown, chosen[0], config.zeroth)
    print(f"\n{similarity.calibration['frames']:,} frames of {similarity.calibration['seconds']:,.0f} s")
    print(", ".join(str(output / name) for name in (CLUSTERS, MATRIX, FIGURE)))
    return similarity.layers_of(chosen[0])


def print_table(similarity: Similarity, clusterings: Sequence[Clustering], chosen: Clustering, zeroth: Zeroth) -> None:
    """Each clustering with its silhouette and its CKA within and between clusters; a mark at the chosen one."""
    names = layer_names(similarity.layers, zeroth)
    table = Table(title="Clusterings of the teacher's layers")
    for title in ("", "clusters", "silhouette", "CKA within", "CKA between", "layers"):
        table.add_column(title, justify="left" if title in ("", "layers") else "right")
    for one in clusterings:
        numbers = ["" if math.isnan(value) else f"{value:.3f}" for value in (one.silhouette, one.within, one.between)]
        layers = " | ".join(" ".join(names[place] for place in cluster) for cluster in one.clusters)
        table.add_row("*" if one.clusters == chosen.clusters else "", str(len(one.clusters)), *numbers, layers)
    Console(soft_wrap=False).print(table)


def usable_device(name: str) -> str:
    """`auto` is the GPU if there is one.

    Raises:
        UserError: there is no such device, or it cannot compute (meta).
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.ones(1, device=name).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        allowed = "a device of this machine, such as auto, cpu or cuda"
        raise UserError(f"--device is {name!r:.80}, but it must be {allowed}") from error
    return name
