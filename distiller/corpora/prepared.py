"""The folder of a prepared corpus: its files, and how to read them.

    preparation.json                     the settings, and the number of shards once the corpus is complete
    skipped.csv                          the audio that cannot be used
    records/SET.000000.json              a finished shard: sizes and SHA-256 of its files, and the audio it left out
    SET/cuts.000000.jsonl.gz             Lhotse Shar: `CutSet.from_shar(in_dir=DIR/SET)` reads it, too
    SET/recording.000000.tar             16 kHz mono, 16-bit WAV or FLAC

SET is a subset, or `all`. A copy at another speed has Lhotse's suffix in its id (`_sp0.9`). A record is written after
its shard's files, so only complete shards have one.
"""

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from lhotse import CutSet
from lhotse.cut.data import DataCut
from lhotse.utils import fastcopy

from distiller.audio.skipped import Skipped, read_skipped
from upstream.errors import UserError, nearest

VERSION = 1  # increase when the same corpus would give different files
PREPARATION, SKIPPED, RECORDS, ALL = "preparation.json", "skipped.csv", "records", "all"


@dataclass(frozen=True)
class ShardPlan:
    """Shard number `index` of a subset (or of `all`), and the cuts to make it from (none if it is only read)."""

    subset: str
    index: int
    cuts: Sequence[DataCut] = ()
    speed: float = 1.0  # of the cuts

    @property
    def files(self) -> tuple[str, str]:
        """Paths of manifest and archive in the prepared folder."""
        return f"{self.subset}/cuts.{self.index:06d}.jsonl.gz", f"{self.subset}/recording.{self.index:06d}.tar"

    def record(self, folder: Path) -> Path:
        """Path of the record."""
        return folder / RECORDS / f"{self.subset}.{self.index:06d}.json"


@dataclass(frozen=True)
class Shard:
    """A finished shard: the content of its record."""

    utterances: int
    seconds: float
    skipped: list[list[str]]  # path and reason
    files: dict[str, list[Any]]  # bytes and SHA-256 by the path in the prepared folder


def id_at_speed(name: str, speed: float) -> str:
    """The id of a cut's copy at a speed, as Lhotse names it; unchanged at speed 1."""
    return name if speed == 1 else f"{name}_sp{speed:g}"


def original_id(name: str) -> str:
    """The id of the original of a copy at another speed; any other id unchanged."""
    return re.sub(r"_sp\d+(\.\d+)?$", "", name)


def checksum(path: Path) -> list[Any]:
    """Bytes and SHA-256 of a file."""
    with path.open("rb") as file:
        return [os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def read_record(plan: ShardPlan, folder: Path) -> Shard | None:
    """The record of a shard; None if it is missing or damaged."""
    try:
        return Shard(**json.loads(plan.record(folder).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def intact(plan: ShardPlan, folder: Path) -> Shard | None:
    """A finished shard, if its files are intact byte for byte; None if it is missing or damaged."""
    shard = read_record(plan, folder)
    try:
        return shard if shard and all(checksum(folder / file) == sums for file, sums in shard.files.items()) else None
    except OSError:
        return None


def is_prepared(folder: Path) -> bool:
    """Whether the folder holds a prepared corpus, complete or not."""
    return (folder / PREPARATION).is_file()


def read_preparation(folder: Path) -> dict[str, Any]:
    """The content of preparation.json.

    Raises:
        UserError: it cannot be read, or is of another version.
    """
    path = folder / PREPARATION
    try:
        values = json.loads(path.read_text())
        version, _ = values["version"], values["subsets"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = getattr(error, "strerror", None) or "it is damaged"
        raise UserError(f"{path} cannot be read: {reason}; prepare the corpus again in another folder") from error
    if version != VERSION:
        raise UserError(f"{folder} has format version {version}, not {VERSION}; prepare the corpus in another folder")
    return values


def shard_plans(folder: Path) -> dict[str, list[ShardPlan]]:
    """The shards of each set of a complete prepared corpus.

    Raises:
        UserError: it is not complete.
    """
    shards = read_preparation(folder).get("shards")
    if shards is None:
        raise UserError(f"{folder} is not complete; run the same `corpus.py prepare` again to continue")
    return {name: [ShardPlan(name, index) for index in range(number)] for name, number in shards.items()}


def prepared_sources(folder: Path, subsets: list[str]) -> list[Path]:
    """For `read_prepared`: the folder itself if no subset is named, else FOLDER/SUBSET for each.

    Raises:
        UserError: a subset does not exist.
    """
    values = read_preparation(folder)
    names = values["subsets"] or values.get("parts", [])
    check_subsets(folder, subsets, names)
    return [folder / name for name in subsets] or [folder]


def check_subsets(folder: Path, subsets: list[str], existing: Collection[str]) -> None:
    """Raises: UserError: one of the subsets does not exist in the folder."""
    if missing := [name for name in subsets if name not in existing]:
        names = ", ".join(sorted(existing)[:20]) + (f" and {len(existing) - 20} more" if len(existing) > 20 else "")
        meant = nearest(missing[0], existing)
        hint = f"; did you mean {meant}?" if meant else ""
        raise UserError(f"{folder} has no subset {missing[0]!r}; its subsets are {names or 'none'}{hint}")


def read_prepared(source: Path) -> list[DataCut | Skipped]:
    """The cuts of a prepared folder, or of FOLDER/SUBSET, and the skipped audio, as the corpus itself would give them.

    Raises:
        UserError: it is not complete, or a file of it is missing or has another size.
    """
    folder, subset = (source, None) if is_prepared(source) else (source.parent, source.name)
    plans = shard_plans(folder)
    names = [subset] if subset in plans else list(plans)
    cuts = chain.from_iterable(_read_shard(plan, folder) for name in names for plan in plans[name])
    skipped = [row for row in read_skipped(folder / SKIPPED) if subset is None or f"/{subset}/" in row.path]
    if subset is None or subset in plans:
        return [*cuts, *skipped]
    return [*_part(cuts, subset), *skipped]


def _part(cuts: Iterator[DataCut], subset: str) -> Iterator[DataCut]:
    """The cuts in one folder of a corpus prepared without subsets; ids as when that folder is opened as a subset."""
    for cut in cuts:
        name = cut.id.removeprefix("LibriSpeech/")
        if name.startswith(f"{subset}/"):
            yield fastcopy(cut, id=name)


def parts(ids: list[str]) -> list[str]:
    """The top folders of a corpus, which can be read as its subsets."""
    return sorted({name.removeprefix("LibriSpeech/").split("/")[0] for name in ids if "/" in name} - {""})


def _read_shard(plan: ShardPlan, folder: Path) -> Iterator[DataCut]:
    """Cuts with the position of their audio and the length of their source, which may end between two samples."""
    record = read_record(plan, folder)
    manifest, archive = (folder / file for file in plan.files)
    for file in (manifest, archive):
        size = file.stat().st_size if file.is_file() else None
        if record is None or size != record.files[str(file.relative_to(folder))][0]:
            raise UserError(f"{file} is missing or damaged; run the same `corpus.py prepare` again to replace it")
    if not record or not record.utterances:  # Lhotse does not read an empty manifest
        return
    for cut in CutSet.from_file(manifest):
        assert isinstance(cut, DataCut)
        assert cut.recording is not None
        assert cut.custom is not None
        custom = cut.custom
        source = fastcopy(cut.recording.sources[0], type="file", source=f"{archive}/{custom['member']}")
        span = {"archive": str(archive), "offset": custom["offset"], "size": custom["size"], "whole": True}
        recording = fastcopy(cut.recording, sources=[source])
        yield fastcopy(cut, duration=custom["seconds"], recording=recording, custom={"span": span})
