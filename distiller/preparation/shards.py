"""Writing one shard of a prepared corpus (`distiller.corpora.prepared` describes its files)."""

import gzip
import io
import json
import tarfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
from lhotse import AudioSource, MonoCut, Recording
from lhotse.augmentation import Speed
from lhotse.cut.data import DataCut
from lhotse.shar.writers.tar import TarWriter
from lhotse.utils import perturb_num_samples
from numpy.typing import NDArray

from distiller.audio.decoding import Decoder, Undecodable, source_path
from distiller.common.files import disk_errors, write_json, writing
from distiller.corpora.prepared import Shard, ShardPlan, checksum, id_at_speed, intact
from upstream.config import SAMPLE_RATE

Format = Literal["wav", "flac"]
FULL_SCALE = 32768  # of 16-bit samples
ANY_LENGTH = Decoder(min_samples=1)  # clips too short for an encoder are skipped when the corpus is opened


def write_shard(plan: ShardPlan, folder: Path, format: Format) -> Shard:
    """Decode the cuts of a shard and write its archive, its manifest and, last, its record, unless it exists intact.

    Raises:
        UserError: the folder cannot be written, or audio has disappeared since the scan.
    """
    if shard := intact(plan, folder):
        return shard
    manifest, archive = (folder / file for file in plan.files)
    kept: list[tuple[DataCut, MonoCut]] = []
    skipped: list[list[str]] = []
    with writing(archive) as temporary:
        temporary.touch()  # stays empty if nothing in the shard can be used
        with TarWriter(str(temporary), shard_size=None) as tar:
            for cut in plan.cuts:
                try:
                    samples = ANY_LENGTH.decode(cut).numpy()
                except Undecodable as error:
                    _check_still_exists(cut)
                    skipped.append([source_path(cut), str(error)])
                else:
                    samples = at_speed(samples, plan.speed)
                    kept.append((cut, _cut(id_at_speed(cut.id, plan.speed), samples.size)))
                    _add(tar, kept[-1][1], samples, format)
        spans = _spans(temporary) if kept else []
    lines = ""
    for (cut, prepared), span in zip(kept, spans, strict=True):
        seconds = cut.duration if plan.speed == 1 else prepared.duration
        prepared.custom = {"seconds": seconds} | span
        lines += json.dumps(prepared.to_dict()) + "\n"
    with writing(manifest) as temporary:
        temporary.write_bytes(gzip.compress(lines.encode(), mtime=0))  # the same bytes whenever they are written
    sums = {file: checksum(folder / file) for file in plan.files}
    shard = Shard(len(kept), sum(cut.duration for cut, _ in kept) / plan.speed, skipped, sums)
    write_json(plan.record(folder), asdict(shard))
    return shard


def at_speed(samples: NDArray[np.float32], speed: float) -> NDArray[np.float32]:
    """(sample,) at 16 kHz played faster or slower: length, pitch and formants change together.

    As Lhotse's `perturb_speed` of 16 kHz audio, whose resampler would take gigabytes at some other rates.
    """
    if speed == 1:
        return samples
    played = Speed(speed)(samples[None], SAMPLE_RATE)[0]
    return played[: perturb_num_samples(samples.size, speed)]


def _check_still_exists(cut: DataCut) -> None:
    """Undecodable audio is skipped, but if it can no longer even be opened, the corpus has disappeared."""
    path = ((cut.custom or {}).get("span") or {}).get("archive", source_path(cut))
    hint = "; run the same command again to continue once it is back"
    with disk_errors(Path(path), "read any more", hint), open(path, "rb"):
        pass


def _cut(name: str, samples: int) -> MonoCut:
    source = AudioSource(type="shar", channels=[0], source="")
    seconds = samples / SAMPLE_RATE
    return MonoCut(name, 0.0, seconds, 0, recording=Recording(name, [source], SAMPLE_RATE, samples, seconds))


def _add(tar: TarWriter, cut: MonoCut, samples: NDArray[np.float32], format: Format) -> None:
    """Add a cut's audio and manifest, named as Lhotse's writer does."""
    assert cut.recording is not None
    ending, audio = encode(samples, format)
    tar.write(f"{cut.id}.{ending}", io.BytesIO(audio))
    tar.write(f"{cut.id}.json", io.BytesIO(json.dumps(cut.recording.to_dict()).encode()), count=False)


def encode(samples: NDArray[np.float32], format: Format) -> tuple[str, bytes]:
    """The ending and bytes of an audio file of these samples, each at most 2^-16 off.

    16 bits where they suffice; libsndfile's conversion scales by 32767, which would change samples of 16-bit sources.
    Samples beyond full scale, or too quiet for 16 bits, stay floats (in AU, because WAV would note the time).
    """
    rounded = np.rint(samples * FULL_SCALE)
    fits = rounded.min() >= -FULL_SCALE and rounded.max() < FULL_SCALE and rounded.any()
    ending = format if fits else "au"
    values, subtype = (rounded.astype(np.int16), "PCM_16") if fits else (samples, "FLOAT")
    file = io.BytesIO()
    soundfile.write(file, values, SAMPLE_RATE, format=ending.upper(), subtype=subtype)
    return ending, file.getvalue()


def _spans(archive: Path) -> list[dict[str, Any]]:
    """The position of each cut's audio in a shard's archive."""
    with tarfile.open(archive, "r:") as tar:
        members = [member for member in tar if not member.name.endswith(".json")]
    return [{"member": member.name, "offset": member.offset_data, "size": member.size} for member in members]
