"""A comparison of a teacher's layers that trains nothing: CKA, several clusterings, and how well each separates."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from distiller.clustering.calibrate import CalibrationAudio, calibrate
from distiller.clustering.files import CLUSTERS, FIGURE, MATRIX, Similarity, write_clusterings
from distiller.clustering.tree import Clustering, clusterings, layer_tree
from distiller.objectives.config import ClustersConfig
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError


def compare(
    config: ClustersConfig,
    teacher: SpeechEncoder,
    audio: CalibrationAudio,
    counts: Sequence[int],
    seed: int,
    device: str,
    output: Path,
    title: str,
) -> list[list[int]]:
    """Compare, write cka.csv, clusters.json and similarity.png, print the clusterings; returns the first one's layers.

    Args:
        counts: of clusters, see `write_clusterings`; if empty, all possible ones are printed.

    Raises:
        UserError: as `calibrate`, or an impossible count.
    """
    similarity = calibrate(config, teacher, audio, seed, device)
    shown = write_clusterings(output, similarity, config, counts, title)
    first = shown[0]
    if not counts:
        tree = layer_tree(similarity.cka, config.linkage, config.contiguous)
        shown = clusterings(similarity.cka, tree, range(2, len(similarity.layers))) or shown
    print_table(similarity, shown, first)
    print(f"\n{similarity.calibration['frames']:,} frames of {similarity.calibration['seconds']:,.0f} s")
    print(", ".join(str(output / name) for name in (CLUSTERS, MATRIX, FIGURE)))
    return similarity.layers_of(first)


def print_table(similarity: Similarity, rows: Sequence[Clustering], marked: Clustering) -> None:
    """Each clustering with its silhouette and its CKA within and between clusters; an asterisk at the marked one."""
    table = Table(title="Clusterings of the teacher's layers")
    for title in ("", "clusters", "silhouette", "CKA within", "CKA between", "layers"):
        table.add_column(title, justify="left" if title in ("", "layers") else "right")
    for row in rows:
        numbers = ["" if math.isnan(value) else f"{value:.3f}" for value in (row.silhouette, row.within, row.between)]
        layers = " | ".join(" ".join(similarity.names[place] for place in cluster) for cluster in row.clusters)
        table.add_row("*" if row.clusters == marked.clusters else "", str(len(row.clusters)), *numbers, layers)
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
