"""A corpus in parts, each finished or not, so that several processes can share the work and a killed one can continue.

The folder of unfinished work holds the settings, the list of the corpus, and a record of each finished part: a JSON
that is written after the part's files.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from lhotse.cut.data import DataCut
from torch import Tensor

from distiller.audio.decoding import Decoder
from distiller.audio.skipped import Skipped
from distiller.common.files import remove, sweep, write_json
from distiller.common.progress import progress
from distiller.common.values import difference
from distiller.corpora.corpus import all_audio
from distiller.extraction.forward import Pace, Select, forward, short_enough
from distiller.extraction.ranks import Ranks
from upstream.config import SAMPLE_RATE
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError

PART_BYTES = 2**29  # of a part's results, all in memory at once
PART_SECONDS = 1800.0  # of a part's audio

Row = dict[str, Any]  # data about an utterance; its id is "id"
Finish = Callable[[int, list[tuple[DataCut, Tensor]]], list[Row]]


class Audio(NamedTuple):
    """An opened corpus."""

    cuts: list[DataCut]
    skipped: list[Skipped]  # unusable audio, as far as headers show


class Result(NamedTuple):
    """A finished corpus."""

    rows: list[Row]  # in the order of the corpus
    skipped: list[Skipped]


@dataclass(frozen=True)
class Work:
    """An extraction from a corpus.

    Args:
        folder: of unfinished work; the caller removes it after storing the result.
        settings: common to all of it.
        encoder: in eval mode, on the device of `pace`.
        corpus, subsets: as `all_audio`.
        select: selects the values to keep from the encoder's output.
        frame_bytes: bytes kept per frame.
    """

    folder: Path
    settings: dict[str, Any]
    encoder: SpeechEncoder
    corpus: str
    subsets: list[str]
    select: Select
    frame_bytes: int
    pace: Pace
    ranks: Ranks

    def open(self) -> Audio:
        """The corpus; rank 0 must hold the lock of the output.

        Raises:
            UserError: the folder holds work with other settings, or two utterances share an id; and as `all_audio`.
        """
        if self.ranks.rank == 0:
            sweep(self.folder)
            if self._settings.exists():
                check_settings(self.folder, read_json(self._settings), self.settings)
        self.ranks.wait()
        try:
            decoder = Decoder(self.encoder.config.min_samples)
            cuts, skipped = all_audio(self.corpus, self.subsets, decoder, self.folder / "corpus")
            cuts = short_enough(self.encoder, cuts, skipped)
            _check_ids(cuts)
        except UserError:
            if self.ranks.rank == 0 and not self._settings.exists():
                remove(self.folder / "corpus")  # the list of a corpus that the user will change
                with suppress(OSError):  # it may hold a lock
                    self.folder.rmdir()
            raise
        if self.ranks.rank == 0:
            write_json(self._settings, self.settings)
        self.ranks.wait()
        return Audio(cuts, skipped)

    def run(self, audio: Audio, finish: Finish) -> Result | None:
        """Do what is missing of this rank's share; the result on rank 0, once all ranks are done, None on others.

        Args:
            finish: writes the files of a part, given its number and the kept values of each utterance, (frame, ...),
                and returns the rows of the utterances.

        Raises:
            UserError: no utterance can be decoded; and as `forward` and `finish`.
        """
        parts = self._parts(audio.cuts)
        mine = range(self.ranks.rank, len(parts), self.ranks.size)
        missing = [number for number in mine if not self._record(number).exists()]
        done = self._extract(missing, [parts[number] for number in missing], finish)
        count = sum(len(parts[number]) for number in missing)
        for _ in progress(done, "Extracting", count) if self.ranks.rank == 0 else done:
            pass
        self.ranks.wait()
        return self._collected(len(parts), audio.skipped) if self.ranks.rank == 0 else None

    @property
    def _settings(self) -> Path:
        return self.folder / "settings.json"

    def _parts(self, cuts: Sequence[DataCut]) -> list[list[DataCut]]:
        """The utterances in order, in parts of PART_SECONDS and PART_BYTES; a larger utterance is a part by itself."""
        parts: list[list[DataCut]] = []
        seconds = size = 0.0
        for cut in cuts:
            frames = self.encoder.config.frame_count(round(cut.duration * SAMPLE_RATE))
            seconds, size = seconds + cut.duration, size + frames * self.frame_bytes
            if not parts or seconds > PART_SECONDS or size > PART_BYTES:
                parts.append([])
                seconds, size = cut.duration, frames * self.frame_bytes
            parts[-1].append(cut)
        return parts

    def _record(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"

    def _extract(self, numbers: list[int], parts: list[list[DataCut]], finish: Finish) -> Iterator[None]:
        """Extract, write and record these parts; yields once for each utterance."""
        of_parts = groupby(forward(self.encoder, parts, self.select, self.pace), lambda group: group.part)
        for part, groups in of_parts:
            values: dict[str, Tensor] = {}
            skipped: list[Skipped] = []
            for group in groups:
                values |= dict(zip(group.ids, group.values, strict=True))
                skipped += group.skipped
                yield from [None] * (len(group.ids) + len(group.skipped))
            rows = finish(numbers[part], [(cut, values[cut.id]) for cut in parts[part] if cut.id in values])
            write_json(self._record(numbers[part]), {"rows": rows, "skipped": skipped})

    def _collected(self, parts: int, skipped: list[Skipped]) -> Result:
        records = [read_json(self._record(number)) for number in range(parts)]
        rows = [row for record in records for row in record["rows"]]
        skipped = skipped + [Skipped(*row) for record in records for row in record["skipped"]]
        if not rows:
            raise UserError(f"none of the {len(skipped)} utterances of {self.corpus} can be used")
        return Result(rows, skipped)


def _check_ids(cuts: Sequence[DataCut]) -> None:
    seen: set[str] = set()
    for cut in cuts:
        if cut.id in seen:
            raise UserError(f"two utterances of the corpus have the id {cut.id}, but ids must be unique")
        seen.add(cut.id)


def check_settings(place: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises: UserError: a file or folder was made with other settings than the wanted ones."""
    if other := difference({key: found.get(key) for key in wanted}, wanted, ignore={"encoder.name"}):
        raise UserError(f"{place} was made with other settings: {other}; choose another --output")


def read_json(path: Path) -> dict[str, Any]:
    """The content of one of our files.

    Raises:
        UserError: it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged; remove {path.parent} and run the same command again") from error
