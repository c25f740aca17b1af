#!/usr/bin/env python
"""Which of a teacher's layers say the same: CKA between all of them, clusters, and how well these separate."""

import sys
from pathlib import Path

if __name__ == "__main__":  # runs uninstalled and from any directory; distiller/ itself is no place to import from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import math
import shlex
import warnings
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from distiller.common.command import Parser, complain, run_command
from distiller.common.files import check_writable
from distiller.recipes.yaml_files import todays_word
from upstream.errors import UserError, require

if TYPE_CHECKING:
    from distiller.clustering.calibrate import Similarity
    from distiller.clustering.tree import Clustering
    from distiller.objectives.config import LayerZero

DESCRIPTION = """\
Compare a teacher's layers by linear CKA, cluster them, and say how well each clustering separates. Trains nothing.

Writes cka.csv, clusters.json and similarity.png; of several counts the first has these names, others end in -COUNT.
"""

EPILOG = """\
examples:
  python distiller/similarity.py --teacher bundled --corpus synthetic
  python distiller/similarity.py --teacher microsoft/wavlm-base-plus --corpus /data/LibriSpeech --clusters 4,6,8
"""


def parser() -> Parser:
    built = Parser(prog="distiller/similarity.py", description=DESCRIPTION, epilog=EPILOG)
    built.add_argument(
        "--teacher",
        type=partial(todays_word, "teacher"),
        default="bundled",
        help="bundled, a hub name, a folder or file (default: bundled)",
    )
    built.add_argument(
        "--corpus",
        type=partial(todays_word, "corpus.path"),
        default="synthetic",
        help="synthetic, a folder or a manifest, all of which is used (default: synthetic)",
    )
    built.add_argument("--clusters", default="auto", metavar="4,6,8|auto", help="counts (default: the best silhouette)")
    built.add_argument("--linkage", default="average", help="average, complete, single or weighted (default: average)")
    built.add_argument("--contiguous", action="store_true", help="only clusters that are runs of layers")
    built.add_argument("--layers", metavar="1,2,...", help="of the teacher (default: all, layer 0 included)")
    word = partial(todays_word, "objective.layer_zero")
    layer_zero = "what layer 0 is: feature_projection (P, the default) or transformer_input (F^0)"
    built.add_argument("--layer-zero", "--zeroth", type=word, default="feature_projection", help=layer_zero)
    built.add_argument("--frames", type=int, help="at least so many (default: 20 for each channel of the teacher)")
    built.add_argument("--stride", type=int, default=5, help="take every n-th frame (default: 5)")
    built.add_argument("--debiased", action="store_true", help="the debiased estimator, for few frames")
    built.add_argument("--seed", type=int, default=1, help="of the choice of utterances (default: 1)")
    built.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    built.add_argument("--output", type=Path, default=Path("exp/similarity"), help="default: exp/similarity")
    return built


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0; 2 for a mistake of the user's; 130 or 143 when interrupted."""
    warnings.showwarning = lambda message, *_, **__: complain(f"warning: {message}")
    return run_command(lambda: _carry_out(parser().parse_args(argv)), "run the same command to start again")


def _carry_out(options: argparse.Namespace) -> None:
    counts = _integers("--clusters", options.clusters) if options.clusters != "auto" else []
    layers = _integers("--layers", options.layers) if options.layers else None
    require(0 <= options.seed < 2**32, "--seed", options.seed, "an integer from 0 to 4294967295")
    check_writable(options.output)
    _compare(options, counts, layers)


def _compare(options: argparse.Namespace, counts: list[int], layers: list[int] | None) -> None:
    # heavy imports, after everything that may be wrong with the options
    from distiller.clustering.calibrate import CLUSTERS, FIGURE, MATRIX, calibrate, write_clusters, write_matrix
    from distiller.clustering.tree import automatic_count, cut_tree, layer_tree, separation
    from distiller.common.strict import typed
    from distiller.corpora.config import CorpusConfig
    from distiller.distillation.teacher import load_teacher
    from distiller.objectives.config import ClustersConfig

    estimator = {name: getattr(options, name) for name in ("corpus", "frames", "stride", "debiased")}
    section = {"layers": layers, "linkage": options.linkage, "contiguous": options.contiguous}
    config = typed(ClustersConfig, section | {"layer_zero": options.layer_zero, "calibration": estimator}, "objective")
    device = _device(options.device)
    teacher = load_teacher(options.teacher)
    similarity = calibrate(config, teacher, CorpusConfig(), None, options.seed, device)
    tree = layer_tree(similarity.cka, config.linkage, config.contiguous)
    counts = counts or [automatic_count(similarity.cka, tree)]
    chosen = [separation(similarity.cka, cut_tree(tree, count)) for count in counts]
    write_matrix(options.output / MATRIX, similarity, config.layer_zero)
    for place, clustering in enumerate(chosen):
        ending = f"-{len(clustering.clusters)}" if place else ""
        write_clusters(options.output, similarity, tree, clustering, config, options.teacher, ending)
    others = range(2, len(similarity.layers)) if options.clusters == "auto" else counts
    shown = [separation(similarity.cka, cut_tree(tree, count)) for count in others] or chosen
    print_table(similarity, shown, chosen[0], config.layer_zero)
    print(f"\n{similarity.calibration['frames']:,} frames of {similarity.calibration['seconds']:,.0f} s")
    print(", ".join(str(options.output / name) for name in (CLUSTERS, MATRIX, FIGURE)))
    best = [[similarity.layers[place] for place in cluster] for cluster in chosen[0].clusters]
    print(f"\nNext\n  {skill_command(options, layers, best)}")


def skill_command(options: argparse.Namespace, layers: list[int] | None, clusters: list[list[int]]) -> str:
    """For a shell: SKILL with these clusters, on the teacher and corpus compared; defaults are left out."""
    defaults = parser().parse_args([])
    changed = [name for name in ("teacher", "corpus") if getattr(options, name) != getattr(defaults, name)]
    words = [f"--{name}={getattr(options, name)}" for name in changed]
    values = {
        "layer_zero": options.layer_zero if options.layer_zero != defaults.layer_zero else None,
        "layers": layers,
        "count": len(clusters),  # the recipe's own may be above the number of layers
        "clusters": clusters,
    }
    words += [f"objective.{key}={value}".replace(" ", "") for key, value in values.items() if value is not None]
    output = f"--output={options.output}-skill"
    return shlex.join(["python", "distiller/run.py", "--method=skill", *words, output])


def print_table(
    similarity: "Similarity", clusterings: Sequence["Clustering"], chosen: "Clustering", layer_zero: "LayerZero"
) -> None:
    """Each clustering with its silhouette and its CKA within and between clusters; a mark at the chosen one."""
    from rich.console import Console
    from rich.table import Table

    from distiller.clustering.calibrate import layer_names

    names = layer_names(similarity.layers, layer_zero)
    table = Table(title="Clusterings of the teacher's layers")
    for title in ("", "clusters", "silhouette", "CKA within", "CKA between", "layers"):
        table.add_column(title, justify="left" if title in ("", "layers") else "right")
    for one in clusterings:
        numbers = ["" if math.isnan(value) else f"{value:.3f}" for value in (one.silhouette, one.within, one.between)]
        layers = " | ".join(" ".join(names[place] for place in cluster) for cluster in one.clusters)
        table.add_row("*" if one.clusters == chosen.clusters else "", str(len(one.clusters)), *numbers, layers)
    Console(soft_wrap=False).print(table)


def _integers(option: str, text: str) -> list[int]:
    """`4,6,8` as numbers."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} is {text}, but it must be integers with commas between, such as 4,6,8") from None


def _device(name: str) -> str:
    """`auto` is the GPU where there is one.

    Raises:
        UserError: there is no such device, or it computes nothing, as meta.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.ones(1, device=name).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UserError(
            f"--device is {name!r:.80}, on which this machine cannot compute; auto, cpu and cuda are usual"
        ) from error
    return name


if __name__ == "__main__":
    sys.exit(main())
