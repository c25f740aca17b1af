"""Concatenating clips of one speaker into utterances: single words give a teacher nothing to attend to."""

import json
import math
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lhotse.cut.data import DataCut
from numpy.typing import NDArray

from distiller.audio.decoding import Decoder, Undecodable
from distiller.common.files import lock_folder, read_csv, sweep, write_csv, write_json, writing_folder
from distiller.common.progress import progress
from distiller.common.values import difference
from distiller.corpora.corpus import open_audio
from distiller.preparation.shards import at_speed, encode
from upstream.config import SAMPLE_RATE
from upstream.errors import UserError

Samples = NDArray[np.float32]
SETTINGS, TABLE, COLUMNS = "joined.json", "joined.csv", ("utterance", "clip", "start", "seconds")
SHORTEST_CLIP = 0.2  # seconds
HOP = SAMPLE_RATE // 100  # samples per measurement of the level
SILENT = 40.0  # dB below the loudest hop of a clip
MARGIN = 0.15  # seconds of silence kept before and after a clip
ANY_LENGTH = Decoder(min_samples=1)


@dataclass(frozen=True)
class Joined:
    """What was written."""

    folder: Path
    clips: int
    utterances: int
    seconds: float
    unusable: int

    def __str__(self) -> str:
        text = (
            f"{self.folder}: {self.clips:,} clips as {self.utterances:,} utterances, {self.seconds / 3600:,.2f} hours"
        )
        return text + (f"; {self.unusable:,} clips are silent, too short or cannot be decoded" if self.unusable else "")


def join(
    corpus: Path,
    output: Path,
    seconds: tuple[float, float] = (3.0, 12.0),
    speeds: Sequence[float] = (1.0,),
    seed: int = 1,
) -> Joined:
    """Write OUTPUT/FOLDER/SPEED-NUMBER.flac: the clips of each folder of the corpus in random order, joined.

    Silence around a clip is trimmed to 0.15 s on either side. Every clip occurs once at each speed, each time among
    different clips. joined.csv lists which clip begins where. Repeating the command continues at the missing folder.

    Args:
        corpus: any that `open_audio` takes; a clip's folder is its id without the last part.
        seconds: an utterance ends with the clip that makes it exceed a length drawn between these two.
        speeds: as `at_speed`.

    Raises:
        UserError: as `open_audio`; `output` holds something else.
    """
    settings = {"corpus": str(corpus), "seconds": list(seconds), "speeds": list(speeds), "seed": seed}
    with lock_folder(output):
        sweep(output)
        if (output / SETTINGS).exists():
            if other := difference(_read(output / SETTINGS), settings):
                raise UserError(f"{output} holds clips joined with another {other}; choose another --output")
        elif foreign := sorted(path.name for path in output.iterdir() if not path.name.startswith(".")):
            raise UserError(f"{output} holds other files ({foreign[0]}); choose another --output")
        write_json(output / SETTINGS, settings)
        folders: dict[str, list[DataCut]] = defaultdict(list)
        for cut in open_audio(str(corpus), seconds[1], ANY_LENGTH):
            folders[cut.id.rpartition("/")[0].replace("/", "-") or "clips"].append(cut)
        for name, cuts in progress(sorted(folders.items()), "Joining clips", len(folders)):
            if not (output / name).exists():
                with writing_folder(output / name) as temporary:
                    rows = [row for speed in speeds for row in _write(temporary, name, cuts, seconds, speed, seed)]
                    write_csv(temporary / TABLE, rows, COLUMNS)
    rows = [row for name in folders for row in read_csv(output / name / TABLE)]
    used, total = {row["clip"] for row in rows}, sum(map(len, folders.values()))
    length = math.fsum(float(row["seconds"]) for row in rows)
    return Joined(output, len(used), len({row["utterance"] for row in rows}), length, total - len(used))


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged; remove {path.parent} and join the clips again") from error


def _write(
    folder: Path, name: str, cuts: list[DataCut], seconds: tuple[float, float], speed: float, seed: int
) -> Iterator[dict[str, str]]:
    """Writes the utterances of one speed; yields which clip is where in them."""
    random = np.random.default_rng([seed, zlib.crc32(name.encode()), round(100 * speed)])
    for index, clips in enumerate(_utterances(cuts, seconds, speed, random)):
        ending, audio = encode(np.concatenate([samples for _, samples in clips]), "flac")
        file, start = f"{speed:g}-{index:05d}.{ending}", 0.0
        (folder / file).write_bytes(audio)
        for cut, samples in clips:
            length = samples.size / SAMPLE_RATE
            row = (f"{name}/{file}", cut.id, f"{start:.3f}", f"{length:.3f}")
            yield dict(zip(COLUMNS, row, strict=True))
            start += length


def _utterances(
    cuts: list[DataCut], seconds: tuple[float, float], speed: float, random: np.random.Generator
) -> Iterator[list[tuple[DataCut, Samples]]]:
    """Groups of clips, one for each utterance; the rest at the end is one, too."""
    clips: list[tuple[DataCut, Samples]] = []
    filled, length = 0.0, random.uniform(*seconds)
    for index in random.permutation(len(cuts)):
        try:
            samples = at_speed(trimmed(ANY_LENGTH.decode(cuts[index]).numpy()), speed)
        except Undecodable:
            continue
        if samples.size < SHORTEST_CLIP * SAMPLE_RATE:
            continue
        clips.append((cuts[index], samples))
        filled += samples.size / SAMPLE_RATE
        if filled >= length:
            yield clips
            clips, filled, length = [], 0.0, random.uniform(*seconds)
    if clips:
        yield clips


def trimmed(samples: Samples) -> Samples:
    """(sample,) without the silence at both ends, except for a margin; empty if all of it is silent."""
    hops = samples[: samples.size // HOP * HOP].reshape(-1, HOP)
    if not hops.any():
        return samples[:0]
    levels = 10 * np.log10(np.square(hops).mean(axis=1) + 1e-10)
    loud = np.flatnonzero(levels > levels.max() - SILENT)
    margin = round(MARGIN * SAMPLE_RATE)
    return samples[max(0, loud[0] * HOP - margin) : (loud[-1] + 1) * HOP + margin]
