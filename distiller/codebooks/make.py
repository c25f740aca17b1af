"""From a teacher and a corpus to units on disk. A killed run continues at its last unfinished shard."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lhotse.cut.data import DataCut

from distiller.audio.skipped import Skipped
from distiller.codebooks.config import UnitsConfig
from distiller.codebooks.fitting import fit_on_corpus, units_of
from distiller.codebooks.folder import (
    SETTINGS,
    VERSION,
    read_codebook,
    read_settings,
    shard_path,
    write_codebook,
    write_shard,
)
from distiller.common.files import lock_folder, sweep, write_json
from distiller.common.progress import progress
from distiller.common.values import difference
from distiller.extraction.forward import Pace, forward
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError

SHARD = 500  # utterances


def make_units(
    config: UnitsConfig,
    teacher: SpeechEncoder,
    identity: dict[str, Any],
    cuts: Sequence[DataCut],
    output: Path,
    device: str = "cpu",
) -> list[Skipped]:
    """Fit the codebook on a sample of the corpus and write the units of every utterance, or what is still missing.

    Args:
        identity: of the teacher, for targets.json.
        cuts: the corpus.

    Returns:
        The utterances without units, because they cannot be decoded.

    Raises:
        UserError: `output` holds units with other settings, or fewer frames than units.
    """
    corpus = {"utterances": len(cuts), "seconds": round(sum(cut.duration for cut in cuts), 2)}
    streams = config.streams
    settings = {"version": VERSION, "teacher": identity, "corpus": corpus, "streams": streams, **config.to_dict()}
    teacher, pace, skipped = teacher.to(device).eval(), Pace(device), []
    with lock_folder(output):
        sweep(output)
        if (output / SETTINGS).exists():
            if other := difference(read_settings(output), settings, ignore={"shards", "skipped"}):
                raise UserError(f"{output} contains units made with other settings: {other}; choose another --output")
        else:
            write_codebook(output, fit_on_corpus(config, teacher, cuts, pace, skipped))
            write_json(output / SETTINGS, settings)
        codebook = {name: centroids.to(device) for name, centroids in read_codebook(output).items()}
        count = -(-len(cuts) // SHARD)
        for index in progress(range(count), "Units", count):
            if not shard_path(output, index).exists():
                part = cuts[index * SHARD : (index + 1) * SHARD]
                groups = list(forward(teacher, [part], units_of(config, codebook), pace))
                names = [name for group in groups for name in group.ids]
                units = [rows for group in groups for rows in group.values]
                skipped += [row for group in groups for row in group.skipped]
                dtype = torch.uint8 if config.units <= 256 else torch.uint16
                write_shard(shard_path(output, index), names, units, len(streams), dtype)
        write_json(output / SETTINGS, settings | {"shards": count})
    return list(dict.fromkeys(skipped))
