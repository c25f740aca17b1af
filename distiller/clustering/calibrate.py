"""From a teacher and some audio to clusters of its layers: SKILL's first stage (arXiv 2402.16830, section 3).

Its outcome is three files that appear whole: cka.csv, similarity.png and, last, clusters.json.
"""

import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lhotse.cut.data import DataCut

from distiller.audio.batch import Batch
from distiller.audio.dataset import validation_batches
from distiller.audio.decoding import Decoder
from distiller.clustering.cka import StateBatch, stream_cka
from distiller.clustering.figure import similarity_figure
from distiller.clustering.tree import Clustering, automatic_count, cut_tree, layer_tree, representative, separation
from distiller.common.files import lock_folder, write_json, write_text
from distiller.common.progress import progress
from distiller.corpora.config import CorpusConfig
from distiller.corpora.corpus import open_audio, open_corpus
from distiller.objectives.config import CalibrationConfig, ClustersConfig, LayerZero
from distiller.objectives.layer_map import check_layers
from upstream.config import SAMPLE_RATE
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError

CLUSTERS, MATRIX, FIGURE = "clusters.json", "cka.csv", "similarity.png"
ENOUGH = 20  # frames per channel; below, chance similarity shows in the plain estimator (0.06 at 16 per channel)


@dataclass(frozen=True)
class Similarity:
    """CKA between layers of a teacher, and what it was measured on."""

    layers: list[int]
    cka: np.ndarray  # (layer, layer), in the order of `layers`
    calibration: dict[str, Any]  # for clusters.json


def cluster_layers(
    config: ClustersConfig,
    teacher: SpeechEncoder,
    corpus: CorpusConfig,
    output: Path,
    seed: int = 1,
    device: torch.device | str = "cpu",
    title: str = "",
    training_cuts: Callable[[], Iterable[DataCut]] | None = None,
) -> ClustersConfig:
    """`config` with clusters and their representatives: those set by hand, those of an earlier call, or found now.

    Processes that start together find them once; OUTPUT/clusters.json says that they are found.

    Args:
        corpus: of the recipe, whose training part is taken unless `config.calibration.corpus` names another, which is
            taken whole, what is longer than a batch in windows.
        seed: of the choice of utterances.
        training_cuts: the training part of the corpus; opened here when left out.

    Raises:
        UserError: more clusters than layers, too little audio, or whatever keeps the corpus from being opened.
    """
    if config.clusters is not None:
        return config
    with lock_folder(output / "calibration", ".busy", wait=True):
        if not (output / CLUSTERS).exists():
            similarity = calibrate(config, teacher, corpus, output / "corpus", seed, device, training_cuts)
            tree = layer_tree(similarity.cka, config.linkage, config.contiguous)
            count = automatic_count(similarity.cka, tree) if config.count == "auto" else int(config.count)
            clustering = separation(similarity.cka, cut_tree(tree, count))
            write_matrix(output / MATRIX, similarity, config.layer_zero)
            write_clusters(output, similarity, tree, clustering, config, title)
    return read_clusters(output / CLUSTERS, config)


def calibrate(
    config: ClustersConfig,
    teacher: SpeechEncoder,
    corpus: CorpusConfig,
    cache: Path | None = None,
    seed: int = 1,
    device: torch.device | str = "cpu",
    training_cuts: Callable[[], Iterable[DataCut]] | None = None,
) -> Similarity:
    """CKA between the teacher's layers, on as much of the audio as `config.calibration` asks for.

    Args:
        corpus, training_cuts: as `cluster_layers`.

    Raises:
        UserError: as `cluster_layers`.
    """
    calibration, shape = config.calibration, teacher.config
    decoder = Decoder(shape.min_samples)
    if calibration.corpus is None:
        cuts = list(training_cuts()) if training_cuts else open_corpus(corpus, decoder, cache).train
    else:
        cuts = open_audio(calibration.corpus, corpus.batch_seconds, decoder, cache)
    wanted = calibration.frames if calibration.frames is not None else ENOUGH * shape.embed_dim
    chosen, frames = [], 0
    for index in np.random.default_rng(seed).permutation(len(cuts)):
        if frames >= wanted:
            break
        chosen.append(cuts[index])
        frames += -(-shape.frame_count(round(cuts[index].duration * SAMPLE_RATE)) // calibration.stride)
    batches = validation_batches(chosen, corpus.batch_seconds, decoder)
    similarity = measure(config, teacher, batches, device)
    return replace(
        similarity, calibration={"corpus": calibration.corpus or corpus.path, "seed": seed} | similarity.calibration
    )


def measure(
    config: ClustersConfig,
    teacher: SpeechEncoder,
    batches: Sequence[Callable[[], Batch]],
    device: torch.device | str = "cpu",
) -> Similarity:
    """CKA between the layers that `config` names, over every `stride`-th frame of `batches`.

    Warns below 20 frames per channel, where two layers look alike by chance, and below the frames asked for.

    Raises:
        UserError: layers that the teacher lacks, or no more frames than channels for the plain estimator.
    """
    calibration, width = config.calibration, teacher.config.embed_dim
    layers = sorted(set(config.layers)) if config.layers is not None else list(range(teacher.config.num_layers + 1))
    check_layers(layers, teacher.config.num_layers, "objective.layers")
    teacher = teacher.to(device).eval()
    seconds: list[float] = []  # of each batch of the first pass

    def states() -> Iterator[StateBatch]:
        first = not seconds
        for load in progress(batches, "Comparing the teacher's layers", len(batches)):
            batch = load().to(device)
            if first:
                seconds.append(int(batch.lengths.sum()) / SAMPLE_RATE)
            with torch.no_grad():
                output = teacher(batch.waveforms, batch.lengths)
            mask = output.frame_mask()
            yield [output.layer(layer, config.layer_zero) for layer in layers], mask

    cka, frames = stream_cka(states, [width] * len(layers), None, calibration.debiased, calibration.stride)
    _check_frames(frames, width, calibration)
    facts = {"frames": frames, "seconds": round(sum(seconds), 1)}
    settings = {"stride": calibration.stride, "debiased": calibration.debiased, "layer_zero": config.layer_zero}
    return Similarity(layers, cka, facts | settings)


def _check_frames(frames: int, width: int, calibration: CalibrationConfig) -> None:
    if calibration.debiased or frames >= ENOUGH * width:
        if calibration.frames is not None and frames < calibration.frames:
            warnings.warn(
                f"the calibration set gives {frames} frames, fewer than the {calibration.frames} asked for: there is "
                "no more audio",
                stacklevel=3,
            )
        return
    remedy = "give more audio, or take the debiased estimator"
    if frames <= width:
        raise UserError(
            f"the calibration set gives {frames} frames, no more than the teacher has channels ({width}), so that all "
            f"layers look alike; {remedy}"
        )
    warnings.warn(
        f"the calibration set gives {frames} frames, fewer than {ENOUGH} for each of the teacher's {width} channels, "
        f"so that CKA is too high; {remedy}",
        stacklevel=3,
    )


def layer_names(layers: Sequence[int], layer_zero: LayerZero) -> list[str]:
    """As figures and tables call them: P or F⁰, then numbers."""
    first = "P" if layer_zero == "feature_projection" else "F⁰"
    return [str(layer) if layer else first for layer in layers]


def write_matrix(path: Path, similarity: Similarity, layer_zero: LayerZero) -> None:
    """CKA as CSV, a row and a column per layer."""
    names = layer_names(similarity.layers, layer_zero)
    rows = [[name, *(f"{value:.8f}" for value in row)] for name, row in zip(names, similarity.cka, strict=True)]
    write_text(path, "".join(",".join(row) + "\n" for row in [["layer", *names], *rows]))


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
    write_json(
        record,
        {
            "layers": similarity.layers,
            "cka": similarity.cka.tolist(),
            "linkage": config.linkage,
            "contiguous": config.contiguous,
            "clusters": [[similarity.layers[place] for place in cluster] for cluster in clustering.clusters],
            "separation": {key: None if math.isnan(value) else value for key, value in numbers.items()},
            "calibration": similarity.calibration,
        },
    )


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
