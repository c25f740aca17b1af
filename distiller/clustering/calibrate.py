"""From a teacher and some audio to clusters of its layers: SKILL's first stage (arXiv 2402.16830, section 3)."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from lhotse.cut.data import DataCut

from distiller.audio.batch import Batch
from distiller.audio.dataset import validation_batches
from distiller.audio.decoding import Decoder
from distiller.clustering.cka import StateBatch, stream_cka
from distiller.clustering.files import CLUSTERS, Similarity, read_clusters, write_clusterings
from distiller.common.files import lock_folder
from distiller.common.progress import progress
from distiller.objectives.config import CalibrationConfig, ClustersConfig
from distiller.objectives.layer_map import check_layers
from upstream.config import SAMPLE_RATE
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError

ENOUGH = 20  # frames per channel; with fewer, the plain estimator shows chance similarity (0.06 at 16 per channel)


@dataclass(frozen=True)
class CalibrationAudio:
    """Audio on which layers are compared."""

    corpus: str  # its name, for clusters.json
    cuts: Sequence[DataCut]
    batch_seconds: float


def cluster_layers(
    config: ClustersConfig,
    teacher: SpeechEncoder,
    audio: Callable[[], CalibrationAudio],
    output: Path,
    seed: int = 1,
    device: torch.device | str = "cpu",
    title: str = "",
) -> ClustersConfig:
    """`config` with clusters and their representatives: set by hand, from an earlier call, or computed now.

    Processes that start together compute them once; OUTPUT/clusters.json marks them as complete.

    Args:
        audio: opens the audio to calibrate on; not called when the clusters are known.
        seed: of the choice of utterances.
        title: of the figure.

    Raises:
        UserError: more clusters than layers, too little audio, or whatever `audio` raises.
    """
    if config.clusters is not None:
        return config
    with lock_folder(output / "calibration", ".busy", wait=True):
        if not (output / CLUSTERS).exists():
            similarity = calibrate(config, teacher, audio(), seed, device)
            write_clusterings(output, similarity, config, [] if config.count == "auto" else [int(config.count)], title)
    return read_clusters(output / CLUSTERS, config)


def calibrate(
    config: ClustersConfig,
    teacher: SpeechEncoder,
    audio: CalibrationAudio,
    seed: int = 1,
    device: torch.device | str = "cpu",
) -> Similarity:
    """CKA between the teacher's layers, on a random part of the audio (`seed`) as large as `config.calibration` asks.

    Raises:
        UserError: as `measure`.
    """
    calibration, shape = config.calibration, teacher.config
    wanted = calibration.frames if calibration.frames is not None else ENOUGH * shape.embed_dim
    cuts, frames = [], 0
    for index in np.random.default_rng(seed).permutation(len(audio.cuts)):
        if frames >= wanted:
            break
        cuts.append(audio.cuts[index])
        frames += -(-shape.frame_count(round(audio.cuts[index].duration * SAMPLE_RATE)) // calibration.stride)
    batches = validation_batches(cuts, audio.batch_seconds, Decoder(shape.min_samples))
    similarity = measure(config, teacher, batches, device)
    source = {"corpus": audio.corpus, "seed": seed, "seconds": round(sum(cut.duration for cut in cuts), 1)}
    return replace(similarity, calibration=source | similarity.calibration)


def measure(
    config: ClustersConfig,
    teacher: SpeechEncoder,
    batches: Sequence[Callable[[], Batch]],
    device: torch.device | str = "cpu",
) -> Similarity:
    """CKA between the layers of `config`, over every `stride`-th frame of `batches`.

    Warns below 20 frames per channel, where layers are similar by chance, and below `config.calibration.frames`.

    Raises:
        UserError: the teacher does not have a layer, or no more frames than channels for the plain estimator.
    """
    calibration, width = config.calibration, teacher.config.embed_dim
    layers = sorted(set(config.layers)) if config.layers is not None else list(range(teacher.config.num_layers + 1))
    check_layers(layers, teacher.config.num_layers, f"{config.key}.layers")
    teacher = teacher.to(device).eval()

    def states() -> Iterator[StateBatch]:
        for load in progress(batches, "Comparing the teacher's layers", len(batches)):
            batch = load().to(device)
            with torch.no_grad():
                output = teacher(batch.waveforms, batch.lengths)
            yield [output.layer(layer, config.layer_zero) for layer in layers], output.frame_mask()

    cka, frames = stream_cka(states, len(layers), width, calibration.debiased, calibration.stride)
    _check_frames(frames, width, calibration)
    settings = {"stride": calibration.stride, "debiased": calibration.debiased, "layer_zero": config.layer_zero}
    return Similarity(layers, cka, {"frames": frames} | settings)


def _check_frames(frames: int, width: int, calibration: CalibrationConfig) -> None:
    result = f"the calibration set gives {frames} frames"
    if not calibration.debiased and frames < ENOUGH * width:
        remedy = "give more audio, or use the debiased estimator"
        if frames <= width:
            raise UserError(
                f"{result}, no more than the teacher's {width} channels, so all layers look alike; {remedy}"
            )
        warnings.warn(
            f"{result}, fewer than {ENOUGH} for each of the teacher's {width} channels, so CKA is too high; {remedy}",
            stacklevel=3,
        )
    elif calibration.frames is not None and frames < calibration.frames:
        warnings.warn(f"{result}, fewer than the {calibration.frames} requested: there is no more audio", stacklevel=3)
