"""The units of a corpus as text: a line for each utterance, with a JSON of statistics beside it.

UTTERANCE<TAB>17 17 17 4 4 93              or, deduplicated:
UTTERANCE<TAB>17 4 93<TAB>3 2 1            with the frames that each unit lasts
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from lhotse.cut.data import DataCut
from torch import Tensor

from distiller.codebooks.fitting import units_of
from distiller.codebooks.quantiser import Quantiser
from distiller.codebooks.scores import agreement, deduplicated, rate, together
from distiller.common.files import lock_folder, remove, write_json, write_text
from distiller.common.values import digest
from distiller.extraction.extract import absolute
from distiller.extraction.forward import Pace
from distiller.extraction.ranks import Ranks
from distiller.extraction.work import Row, Work, check_settings, read_json
from distiller.synthesis.espeak import PHONES
from distiller.synthesis.splits import FRAME_SHIFT, phone_targets
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError

VERSION = 1  # increase when the same settings would give different units
INT64 = 8  # bytes


def beside(output: Path, ending: str) -> Path:
    """FILE.ENDING of the output FILE."""
    return output.with_name(f"{output.name}.{ending}")


def extract_units(
    quantiser: Quantiser,
    encoder: SpeechEncoder,
    corpus: str,
    subsets: list[str],
    output: Path,
    deduplicate: bool,
    pace: Pace,
    ranks: Ranks,
) -> dict[str, Any] | None:
    """Write the units of every utterance of a corpus, or those still missing.

    Args:
        encoder: in eval mode, on the device of `pace`.
        corpus, subsets: as `all_audio`.
        output: the file.

    Returns:
        The content of the JSON; None on ranks above 0.

    Raises:
        UserError: `output` is something else or has other settings; and as `Work.open`, `Work.run`.
    """
    settings = _settings(quantiser, corpus, subsets, deduplicate, pace)
    unfinished, statistics = beside(output, "unfinished"), beside(output, "json")
    if output.exists():
        if not statistics.exists():
            raise UserError(f"{output} exists and was not written by this command; choose another --output")
        values = read_json(statistics)
        check_settings(output, values, settings)
        return values if ranks.rank == 0 else None
    codebook = {name: centroids.to(pace.device) for name, centroids in quantiser.codebook.items()}
    select = units_of(quantiser.config, codebook)
    with lock_folder(unfinished) if ranks.rank == 0 else nullcontext():
        work = Work(unfinished, settings, encoder, corpus, subsets, select, INT64, pace, ranks)
        audio = work.open()
        _check_lines(audio.cuts)
        result = work.run(audio, _rows)
        if result is None:
            return None
        units = {row["id"]: [int(unit) for unit in row["units"].split()] for row in result.rows}
        cuts = [cut for cut in audio.cuts if cut.id in units]
        skipped = [row._asdict() for row in result.skipped]
        values = settings | statistics_of(units, cuts, quantiser.config.units, encoder.config) | {"skipped": skipped}
        write_json(statistics, values)
        write_text(output, "".join(_line(name, sequence, deduplicate) for name, sequence in units.items()))
        remove(unfinished)
        return values


def statistics_of(
    units: Mapping[str, list[int]], cuts: Sequence[DataCut], size: int, encoder: EncoderConfig
) -> dict[str, Any]:
    """The amount of audio, the rate of both streams and, if the cuts have phones, the agreement with them.

    Args:
        units: by utterance id.
        cuts: of the utterances.
        size: units in the codebook.
    """
    seconds = math.fsum(cut.duration for cut in cuts)
    values: dict[str, Any] = {
        "utterances": len(cuts),
        "seconds": round(seconds, 2),
        "used": len(set(chain.from_iterable(units.values()))),
        "plain": rate(units.values(), seconds)._asdict(),
        "deduplicated": rate((deduplicated(sequence)[0] for sequence in units.values()), seconds)._asdict(),
    }
    aligned = all(supervision.alignment for cut in cuts for supervision in cut.supervisions)
    if not (aligned and all(cut.supervisions for cut in cuts) and encoder.samples_per_frame == FRAME_SHIFT):
        return values
    counts = np.zeros((len(PHONES), size), np.int64)
    for cut in cuts:
        sequence = np.array(units[cut.id])
        counts += together(phone_targets(cut, len(sequence)), sequence, counts.shape)
    return values | {"phones": agreement(counts)._asdict()}


def summary(output: Path, values: dict[str, Any]) -> str:
    """The statistics, human-readable."""
    lines = [
        f"{output} holds the units of {values['utterances']} utterances, {values['seconds']:,.1f} s; "
        f"{values['used']} of {values['units']} units are used"
    ]
    for name in ("plain", "deduplicated"):
        stream = "{per_second:.1f} units/s x {entropy:.2f} bits = {bits_per_second:.1f} bits/s".format(**values[name])
        lines.append(f"{name + ':':<14}{stream}")
    if phones := values.get("phones"):
        lines.append(
            f"phones:       PNMI {phones['pnmi']:.3f}, phone purity {phones['phone_purity']:.3f}, "
            f"cluster purity {phones['cluster_purity']:.3f}"
        )
    return "\n".join(lines)


def _settings(quantiser: Quantiser, corpus: str, subsets: list[str], deduplicate: bool, pace: Pace) -> dict[str, Any]:
    return {
        "version": VERSION,
        "encoder": quantiser.identity,
        "codebook": digest({name: centroids.tolist() for name, centroids in quantiser.codebook.items()})[:16],
        "corpus": absolute(corpus),
        "subsets": subsets,
        "deduplicate": deduplicate,
        "chunk_seconds": pace.chunk_seconds,
        **quantiser.config.to_dict(),
    }


def _check_lines(cuts: Sequence[DataCut]) -> None:
    if unfit := next((cut.id for cut in cuts if set(cut.id) & set("\t\r\n")), None):
        raise UserError(f"the id {unfit!r} contains a tab or a line break, but these are separators in the output")


def _rows(part: int, results: list[tuple[DataCut, Tensor]]) -> list[Row]:
    return [{"id": cut.id, "units": _spaced(units[:, 0].tolist())} for cut, units in results]


def _line(name: str, units: list[int], deduplicate: bool) -> str:
    columns = deduplicated(units) if deduplicate else (units,)
    return "\t".join([name, *map(_spaced, columns)]) + "\n"


def _spaced(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))
