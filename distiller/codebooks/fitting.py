"""Codebooks fitted on a sample of a corpus, and the resulting units of an encoder's frames."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from lhotse.cut.data import DataCut
from torch import Tensor

from distiller.audio.skipped import Skipped
from distiller.codebooks.codebook import fit, normalised, quantise
from distiller.codebooks.config import UnitsConfig
from distiller.common.progress import progress
from distiller.extraction.forward import Pace, Select, forward
from upstream.config import SAMPLE_RATE
from upstream.encoder import EncoderOutput, SpeechEncoder
from upstream.errors import UserError


def sampled(frames: Sequence[int], config: UnitsConfig) -> list[int]:
    """Random utterances (by the seed) that together have enough frames to fit the codebook.

    Args:
        frames: of each utterance.
    """
    chosen: list[int] = []
    total = 0
    for index in np.random.default_rng(config.seed).permutation(len(frames)):
        if total >= config.frames:
            break
        chosen.append(int(index))
        total += frames[index]
    return chosen


def fit_codebook(config: UnitsConfig, features: Iterable[Tensor]) -> dict[str, Tensor]:
    """The codebook, (stage, unit, channel) by layer.L.

    Args:
        features: of each utterance of the sample, (frame, layer, channel), normalised.

    Raises:
        UserError: no features, or fewer frames than units.
    """
    utterances = list(features)
    if not utterances:
        raise UserError("none of the sampled utterances can be decoded; look at the corpus, or change --seed")
    frames = torch.cat(utterances)[: config.frames]
    return {
        f"layer.{layer}": fit(frames[:, place], config.units, config.stages, config.seed)
        for place, layer in enumerate(progress(config.layers, "Fitting the codebook"))
    }


def fit_on_corpus(
    config: UnitsConfig, encoder: SpeechEncoder, cuts: Sequence[DataCut], pace: Pace, skipped: list[Skipped]
) -> dict[str, Tensor]:
    """As `fit_codebook`, on a sample of these utterances; undecodable ones are added to `skipped`."""
    frames = [encoder.config.frame_count(round(cut.duration * SAMPLE_RATE)) for cut in cuts]
    chosen = [cuts[index] for index in sampled(frames, config)]

    def features() -> Iterable[Tensor]:
        for group in forward(encoder, [chosen], features_of(config), pace):
            skipped.extend(group.skipped)
            yield from group.values

    return fit_codebook(config, progress(features(), "Sampling frames", len(chosen)))


def features_of(config: UnitsConfig) -> Select:
    """Keeps the layers, normalised for quantisation: (batch, frame, layer, channel)."""

    def select(output: EncoderOutput) -> Tensor:
        layers = [output.layer(layer, config.layer_zero) for layer in config.layers]
        return torch.stack([normalised(states, config.norm) for states in layers], dim=2)

    return select


def units_of(config: UnitsConfig, codebook: dict[str, Tensor]) -> Select:
    """Keeps the units: (batch, frame, stream) int64.

    Args:
        codebook: on the encoder's device.
    """
    features = features_of(config)

    def select(output: EncoderOutput) -> Tensor:
        states = features(output)  # (batch, frame, layer, channel)
        columns = [
            quantise(states[:, :, place].flatten(0, 1), codebook[f"layer.{layer}"])
            for place, layer in enumerate(config.layers)
        ]
        return torch.cat(columns, dim=1).unflatten(0, states.shape[:2])

    return select
