"""From a teacher and a corpus to units on disk. A killed run continues at the shard that it was working on."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lhotse.cut.data import DataCut
from safetensors.torch import save
from torch import Tensor

from distiller.audio.batch import Batch
from distiller.audio.dataset import by_duration, load_batch
from distiller.audio.decoding import Decoder
from distiller.audio.skipped import Skipped
from distiller.codebooks.codebook import fit, normalised, quantise
from distiller.codebooks.config import UnitsConfig
from distiller.codebooks.folder import (
    CODEBOOK,
    SETTINGS,
    VERSION,
    read_codebook,
    read_settings,
    shard_path,
    write_shard,
)
from distiller.common.files import lock_folder, sweep, write_json, writing
from distiller.common.progress import progress
from distiller.common.values import difference
from upstream.config import SAMPLE_RATE
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError

BATCH_SECONDS = 100.0  # of audio in a forward pass
SHARD = 500  # utterances


def make_units(
    config: UnitsConfig,
    teacher: SpeechEncoder,
    identity: dict[str, Any],
    cuts: Sequence[DataCut],
    output: Path,
    device: str = "cpu",
) -> list[Skipped]:
    """Fit the codebook on a sample of the corpus and write the units of every utterance, or what is missing of both.

    Args:
        identity: of the teacher, for targets.json.
        cuts: the corpus.

    Returns:
        The utterances without units, since they cannot be decoded.

    Raises:
        UserError: `output` holds units of other settings, or fewer frames than units.
    """
    corpus = {"utterances": len(cuts), "seconds": round(sum(cut.duration for cut in cuts), 2)}
    streams = [f"layer {layer}, stage {stage}" for layer in config.layers for stage in range(config.stages)]
    settings = {"version": VERSION, "teacher": identity, "corpus": corpus, "streams": streams, **config.to_dict()}
    maker = _Maker(config, teacher.to(device).eval(), device)
    with lock_folder(output):
        sweep(output)
        if (output / SETTINGS).exists():
            if other := difference(read_settings(output), settings, ignore={"shards", "skipped"}):
                raise UserError(f"{output} holds units of other settings: {other}; choose another --output")
        else:
            codebook = maker.fitted(cuts)
            with writing(output / CODEBOOK) as temporary:
                temporary.write_bytes(save(codebook))
            write_json(output / SETTINGS, settings)
        codebook = {name: centroids.to(device) for name, centroids in read_codebook(output).items()}
        count = -(-len(cuts) // SHARD)
        for index in progress(range(count), "Units", count):
            if not shard_path(output, index).exists():
                part = cuts[index * SHARD : (index + 1) * SHARD]
                pairs = list(maker.units(part, codebook))
                dtype = torch.uint8 if config.units <= 256 else torch.uint16
                names, units = [name for name, _ in pairs], [rows for _, rows in pairs]
                write_shard(shard_path(output, index), names, units, len(streams), dtype)
        write_json(output / SETTINGS, settings | {"shards": count})
    return maker.skipped


class _Maker:
    """A teacher's frames as they are quantised."""

    def __init__(self, config: UnitsConfig, teacher: SpeechEncoder, device: str) -> None:
        self.config, self.teacher, self.device = config, teacher, device
        self.decoder = Decoder(teacher.config.min_samples)
        self.skipped: list[Skipped] = []

    def fitted(self, cuts: Sequence[DataCut]) -> dict[str, Tensor]:
        """The codebook, (stage, unit, channel) of each layer, from frames of utterances drawn by the seed."""
        config, chosen, frames = self.config, [], 0
        for index in np.random.default_rng(config.seed).permutation(len(cuts)):
            if frames >= config.frames:
                break
            chosen.append(cuts[index])
            frames += self.teacher.config.frame_count(round(cuts[index].duration * SAMPLE_RATE))
        sampled: dict[int, list[Tensor]] = {layer: [] for layer in config.layers}
        for _, features in self.features(progress(by_duration(chosen, BATCH_SECONDS), "Sampling frames")):
            for layer in config.layers:
                sampled[layer].append(features[layer].cpu())
        if not any(sampled.values()):
            raise UserError("none of the sampled utterances can be decoded; look at the corpus, or change --seed")
        return {
            f"layer.{layer}": fit(torch.cat(sampled[layer])[: config.frames], config.units, config.stages, config.seed)
            for layer in progress(config.layers, "Fitting the codebook")
        }

    def units(self, cuts: Sequence[DataCut], codebook: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The id and the units (frame, stream) of each utterance that can be decoded."""
        for name, features in self.features(by_duration(cuts, BATCH_SECONDS)):
            columns = [quantise(features[layer], codebook[f"layer.{layer}"]) for layer in self.config.layers]
            yield name, torch.cat(columns, dim=1).cpu()

    def features(self, groups: Iterable[list[DataCut]]) -> Iterator[tuple[str, dict[int, Tensor]]]:
        """The id and, by layer, the features (frame, channel) of each utterance that can be decoded."""
        for group in groups:
            batch: Batch = load_batch(group, group, self.decoder, np.random.default_rng(0))
            self.skipped += [row for row in batch.skipped if row not in self.skipped]
            if not batch.ids:
                continue
            with torch.no_grad():
                output = self.teacher(batch.to(self.device).waveforms, batch.lengths)
            for row, (name, frames) in enumerate(zip(batch.ids, output.frame_lengths.tolist(), strict=True)):
                states = {
                    layer: output.layer(layer, self.config.layer_zero)[row, :frames] for layer in self.config.layers
                }
                yield name, {layer: normalised(values, self.config.norm) for layer, values in states.items()}
