"""Writing one shard of a prepared corpus (`distiller.corpora.prepared` says what it consists of)."""

import gzip
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
from lhotse import AudioSource, MonoCut, Recording
from lhotse.cut.data import DataCut
from lhotse.shar.writers.tar import TarWriter
from numpy.typing import NDArray

from distiller.audio.decoding import SAMPLE_RATE, Undecodable, decode, source_path
from distiller.common.files import write_text, writing
from distiller.corpora import prepared as layout
from distiller.corpora.prepared import Shard
from upstream.errors import UserError

Format = Literal["wav", "flac"]
FULL_SCALE = 32768  # of 16-bit samples


@dataclass(frozen=True)
class Work:
    """One shard to be."""

    name: str  # of its set
    index: int
    cuts: list[DataCut]


def write_shard(work: Work, folder: Path, format: Format) -> Shard:
    """Decode the cuts of a shard and write its archive, its manifest and, last, its record.

    Raises:
        UserError: the folder cannot be written; audio that was there is not any more.
    """
    names = layout.shard_files(work.name, work.index)
    manifest, archive = (folder / name for name in names)
    kept: list[tuple[DataCut, MonoCut]] = []
    skipped: list[list[str]] = []
    with writing(archive) as temporary:
        temporary.touch()  # stays empty when nothing of the shard can be used
        with TarWriter(str(temporary), shard_size=None) as tar:
            for cut in work.cuts:
                try:
                    samples = decode(cut, min_samples=1).numpy()
                except Undecodable as error:
                    _check_there(cut)
                    skipped.append([source_path(cut), str(error)])
                else:
                    kept.append((cut, _cut(cut.id, samples.size)))
                    _add(tar, kept[-1][1], samples, format)
        spans = _spans(temporary) if kept else []
    lines = ""
    for (cut, prepared), span in zip(kept, spans, strict=True):
        prepared.custom = {"seconds": cut.duration} | span
        lines += json.dumps(prepared.to_dict()) + "\n"
    with writing(manifest) as temporary:
        temporary.write_bytes(gzip.compress(lines.encode(), mtime=0))  # the same bytes whenever they are written
    files = {name: layout.checksum(folder / name) for name in names}
    shard = Shard(len(kept), sum(cut.duration for cut, _ in kept), skipped, files)
    write_text(layout.record_path(folder, work.name, work.index), layout.write_record(shard))
    return shard


def _check_there(cut: DataCut) -> None:
    """Audio that cannot be decoded is set aside; what cannot be opened since the scan is a corpus that went away."""
    path = ((cut.custom or {}).get("span") or {}).get("archive", source_path(cut))
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise UserError(
            f"{path} cannot be read any more: {error.strerror}; run the same command again once it can, to continue"
        ) from error


def _cut(name: str, samples: int) -> MonoCut:
    source = AudioSource(type="shar", channels=[0], source="")
    seconds = samples / SAMPLE_RATE
    return MonoCut(name, 0.0, seconds, 0, recording=Recording(name, [source], SAMPLE_RATE, samples, seconds))


def _add(tar: TarWriter, cut: MonoCut, samples: NDArray[np.float32], format: Format) -> None:
    """Audio and manifest of a cut, as Lhotse's own writer names them."""
    assert cut.recording is not None
    ending, audio = encode(samples, format)
    tar.write(f"{cut.id}.{ending}", io.BytesIO(audio))
    tar.write(f"{cut.id}.json", io.BytesIO(json.dumps(cut.recording.to_dict()).encode()), count=False)


def encode(samples: NDArray[np.float32], format: Format) -> tuple[str, bytes]:
    """The ending and bytes of an audio file of these samples, each of them at most 2^-16 off.

    16 bits where they suffice: libsndfile's own conversion scales by 32767, and would not give back what a 16-bit
    source held. Samples beyond full scale, or too quiet for 16 bits, stay floats (in AU: WAV would note the time).
    """
    rounded = np.rint(samples * FULL_SCALE)
    fits = rounded.min() >= -FULL_SCALE and rounded.max() < FULL_SCALE and rounded.any()
    ending = format if fits else "au"
    values, subtype = (rounded.astype(np.int16), "PCM_16") if fits else (samples, "FLOAT")
    file = io.BytesIO()
    soundfile.write(file, values, SAMPLE_RATE, format=ending.upper(), subtype=subtype)
    return ending, file.getvalue()


def _spans(archive: Path) -> list[dict[str, Any]]:
    """Where in a shard's archive the audio of each cut lies."""
    with tarfile.open(archive, "r:") as tar:
        members = [member for member in tar if not member.name.endswith(".json")]
    return [{"member": member.name, "offset": member.offset_data, "size": member.size} for member in members]
