"""A prepared corpus on disk: what stands where, and reading it.

    preparation.json                     what was prepared, and how many shards it has once it is complete
    skipped.csv                          what of the corpus cannot be used
    records/SET.000000.json              a finished shard: sizes and SHA-256 of its files, and what it had to leave out
    SET/cuts.000000.jsonl.gz             Lhotse Shar: `CutSet.from_shar(in_dir=DIR/SET)` reads it, too
    SET/recording.000000.tar             16 kHz mono, 16-bit WAV or FLAC

SET is a subset, or `all`. A record is written after its shard's files, so that only whole shards have one.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from lhotse import CutSet
from lhotse.cut.data import DataCut
from lhotse.utils import fastcopy

from distiller.audio.skipped import Skipped, read_skipped
from upstream.errors import UserError

VERSION = 1  # raise it when the same corpus would give other files
PREPARATION, SKIPPED, RECORDS, ALL = "preparation.json", "skipped.csv", "records", "all"


@dataclass(frozen=True)
class Shard:
    """A finished shard, as its record has it."""

    utterances: int
    seconds: float
    skipped: list[list[str]]  # path and reason
    files: dict[str, list[Any]]  # bytes and SHA-256 by the path in the prepared folder


def shard_files(name: str, index: int) -> tuple[str, str]:
    """Paths of a shard's manifest and archive in the prepared folder."""
    return f"{name}/cuts.{index:06d}.jsonl.gz", f"{name}/recording.{index:06d}.tar"


def record_path(folder: Path, name: str, index: int) -> Path:
    """Where the record of a finished shard stands: `index` of the subset `name`."""
    return folder / RECORDS / f"{name}.{index:06d}.json"


def checksum(path: Path) -> list[Any]:
    """Bytes and SHA-256 of a file."""
    with path.open("rb") as file:
        return [os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def read_record(path: Path) -> Shard | None:
    """None where there is no record, or a damaged one."""
    try:
        return Shard(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def write_record(shard: Shard) -> str:
    """The text of a shard's record."""
    return json.dumps(asdict(shard), indent=1) + "\n"


def intact(folder: Path, name: str, index: int) -> Shard | None:
    """A finished shard whose files are what was written, every byte of them; None if it is missing or damaged."""
    shard = read_record(record_path(folder, name, index))
    try:
        return shard if shard and all(checksum(folder / file) == sums for file, sums in shard.files.items()) else None
    except OSError:
        return None


def is_prepared(folder: Path) -> bool:
    """Whether a preparation was begun here."""
    return (folder / PREPARATION).is_file()


def read_preparation(folder: Path) -> dict[str, Any]:
    """What preparation.json says.

    Raises:
        UserError: it cannot be read, or other code wrote it.
    """
    path = folder / PREPARATION
    try:
        values = json.loads(path.read_text())
        version, _ = values["version"], values["subsets"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = getattr(error, "strerror", None) or "it is damaged"
        raise UserError(f"{path} cannot be read: {reason}; prepare the corpus again in another folder") from error
    if version != VERSION:
        raise UserError(f"{folder} was prepared in version {version} of the format, this is {VERSION}: prepare it anew")
    return values


def counts(folder: Path) -> dict[str, int]:
    """The number of shards of each set of a complete prepared corpus.

    Raises:
        UserError: it is not complete.
    """
    shards = read_preparation(folder).get("shards")
    if shards is None:
        raise UserError(f"{folder} is not prepared to its end; run the same `corpus.py prepare` again to continue")
    return shards


def sources(folder: Path, subsets: list[str]) -> list[Path]:
    """For `read_prepared`: the folder itself when no subset is named, else FOLDER/SUBSET for each.

    Raises:
        UserError: a subset is not there.
    """
    values = read_preparation(folder)
    there = values["subsets"] or values.get("parts", [])
    for name in subsets:
        if name not in there:
            raise UserError(
                f"{folder} has no subset {name!r}; the subsets prepared are {', '.join(there[:20]) or 'none'}"
            )
    return [folder / name for name in subsets] or [folder]


def read_prepared(source: Path) -> list[DataCut | Skipped]:
    """The cuts of a prepared folder, or of FOLDER/SUBSET, and what was set aside, as the corpus itself would give them.

    Raises:
        UserError: it is not complete, or a file of it is missing or has another size.
    """
    folder, subset = (source, None) if is_prepared(source) else (source.parent, source.name)
    shards = counts(folder)
    names = [subset] if subset in shards else list(shards)
    cuts = chain.from_iterable(_shard(folder, name, index) for name in names for index in range(shards[name]))
    skipped = [row for row in read_skipped(folder / SKIPPED) if subset is None or f"/{subset}/" in row.path]
    if subset is None or subset in shards:
        return [*cuts, *skipped]
    return [*_part(cuts, subset), *skipped]


def _part(cuts: Iterator[DataCut], subset: str) -> Iterator[DataCut]:
    """Of a folder that was prepared as one, what lies in one of its folders; ids as when the corpus is opened so."""
    for cut in cuts:
        name = cut.id.removeprefix("LibriSpeech/")
        if name.startswith(f"{subset}/"):
            yield fastcopy(cut, id=name)


def parts(ids: list[str]) -> list[str]:
    """The folders at the top of a corpus, by which `_part` can take from it."""
    return sorted({name.removeprefix("LibriSpeech/").split("/")[0] for name in ids if "/" in name} - {""})


def _shard(folder: Path, name: str, index: int) -> Iterator[DataCut]:
    """Cuts with the place of their audio, and as long as their source says: it may be no whole number of samples."""
    record = read_record(record_path(folder, name, index))
    manifest, archive = (folder / file for file in shard_files(name, index))
    for file in (manifest, archive):
        size = file.stat().st_size if file.is_file() else None
        if record is None or size != record.files[str(file.relative_to(folder))][0]:
            raise UserError(f"{file} is missing or damaged; run the same `corpus.py prepare` again to make it anew")
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
