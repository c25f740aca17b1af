"""Audio files: whatever bytes a file has, it is finite audio at 16 kHz, or set aside with a reason."""

import io
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from fuzz_mutations import Edit, apply, edits
from fuzz_worker import Broken, Target
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from distiller.audio.decoding import TOLERANCE, Decoder, Undecodable, source_path
from distiller.audio.skipped import Skipped
from distiller.corpora import scanning
from distiller.corpora.config import CorpusConfig
from distiller.corpora.corpus import open_corpus
from upstream.config import SAMPLE_RATE

FORMATS = {  # ending and libsndfile's names by what is asked for
    "wav": ("wav", "WAV", "PCM_16"),
    "wav of floats": ("wav", "WAV", "FLOAT"),
    "wav of doubles": ("wav", "WAV", "DOUBLE"),
    "wav of 24 bits": ("wav", "WAVEX", "PCM_24"),
    "wav of mu-law": ("wav", "WAV", "ULAW"),
    "wav of ADPCM": ("wav", "WAV", "IMA_ADPCM"),
    "rf64": ("wav", "RF64", "PCM_16"),
    "flac": ("flac", "FLAC", "PCM_16"),
    "flac of 24 bits": ("flac", "FLAC", "PCM_24"),
    "ogg": ("ogg", "OGG", "VORBIS"),
    "opus": ("opus", "OGG", "OPUS"),
    "mp3": ("mp3", "MP3", "MPEG_LAYER_III"),
    "aiff in disguise": ("wav", "AIFF", "PCM_16"),
    "au in disguise": ("flac", "AU", "PCM_16"),
    "aiff": ("aiff", "AIFF", "PCM_16"),
    "caf": ("caf", "CAF", "PCM_16"),
    "sphere": ("sph", "NIST", "PCM_16"),
    "w64": ("w64", "W64", "PCM_16"),
}
RATES = [1, 2, 7, 50, 999, 8000, 11_025, 16_000, 22_050, 44_100, 44_101, 48_000, 96_001, 384_000, 655_350, 1_048_575]
WILD = [*RATES, 999_983, 2_000_003, 9_999_991, 99_999_989, 2**31 - 1]  # what the header of a wav can say
VALUES = [0.0, 1.0, -1.0, 1e-40, 3e38, 1e308, float("nan"), float("inf"), float("-inf")]
SHOWN_REASON = 400


def written(kind: str, samples: np.ndarray, rate: int) -> bytes:
    _, container, subtype = FORMATS[kind]
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container, subtype=subtype)
    return file.getvalue()


DECODER = Decoder(min_samples=400)


def noise(samples: int, channels: int = 1) -> np.ndarray:
    return 0.1 * np.random.default_rng(0).standard_normal((samples, channels))


def check(example: tuple[str, bytes]) -> None:
    ending, content = example
    for name in ("good", "better"):
        os.symlink(Path.cwd().parent / f"base/{name}.wav", f"{name}.wav")
    path = Path(f"fuzzed.{ending}").absolute()
    path.write_bytes(content)
    config = CorpusConfig(path=str(path.parent), max_skipped=1.0, validation_share=0.4, batch_seconds=1e300)
    corpus = open_corpus(config, DECODER)
    found = [cut for cut in [*corpus.train, *corpus.validation] if source_path(cut) == str(path)]
    rows = [row for row in corpus.skipped if row.path == str(path)]
    if len(found) + len(rows) != 1:
        raise Broken("a file that is neither used nor set aside")
    for row in rows:
        reasonable(row)
    for cut in found:
        decoded(cut)


def decoded(cut: Any) -> None:
    """A cut that the corpus kept is finite audio of its length, or has a reason."""
    try:
        samples = DECODER.decode(cut)
    except Undecodable as error:
        reasonable(Skipped("", str(error)))
        return
    if samples.dtype != torch.float32 or samples.ndim != 1 or len(samples) < 400:
        raise Broken("decoded to something else than samples")
    if not bool(samples.isfinite().all()):
        raise Broken("decoded to values that are not finite")
    slack = TOLERANCE + 2 / cut.sampling_rate + 2 / SAMPLE_RATE
    if abs(len(samples) / SAMPLE_RATE - cut.duration) > slack:
        raise Broken("decoded to another length than declared")


def reasonable(row: Skipped) -> None:
    if not row.reason.strip() or len(row.reason) > SHOWN_REASON or "\n" in row.reason:
        raise Broken("a reason that is not one line")


def checksummed(content: bytes) -> bytes:
    """Ogg pages with their checksums made right again, so that edits get beyond them."""
    pages, at = bytearray(content), 0
    while (at := pages.find(b"OggS", at)) >= 0 and at + 27 <= len(pages):
        segments = pages[at + 26]
        end = at + 27 + segments + sum(pages[at + 27 : at + 27 + segments])
        pages[at + 22 : at + 26] = bytes(4)
        pages[at + 22 : at + 26] = struct.pack("<I", _checksum(pages[at:end]))
        at += 27
    return bytes(pages)


def _table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C11DB7 if value & 2**31 else 0)) & 0xFFFFFFFF
        table.append(value)
    return table


TABLE = _table()


def _checksum(page: bytes | bytearray) -> int:
    value = 0
    for byte in page:
        value = (value << 8 & 0xFFFFFFFF) ^ TABLE[value >> 24 ^ byte]
    return value


@st.composite
def header_fields(draw: st.DrawFn) -> bytes:
    """A wav whose rate, channels, block, bits or sizes say something else."""
    content = written(draw(st.sampled_from(["wav", "wav of floats"])), noise(draw(st.integers(0, 60_000))), 16_000)
    numbers = st.sampled_from([*WILD, 0, 2**16, 2**24, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1)
    changes: list[Edit] = []
    for _ in range(draw(st.integers(1, 3))):
        at, size = draw(
            st.sampled_from([(4, 4), (16, 4), (20, 2), (22, 2), (24, 4), (28, 4), (32, 2), (34, 2), (40, 4)])
        )
        changes.append(("set", at, struct.pack("<I", draw(numbers))[:size]))
    return apply(content, changes)


@st.composite
def special_samples(draw: st.DrawFn) -> bytes:
    """A whole file of any rate, number of channels and length, with a sample that is none."""
    rate = draw(st.sampled_from(WILD))
    count = draw(st.integers(0, 20_000) | st.just(min(rate // 32, 400_000)))  # the latter: just enough for a frame
    samples = noise(count, draw(st.sampled_from([1, 1, 2, 7, 64])) if count <= 20_000 else 1)
    if len(samples):
        samples[draw(st.integers(0, len(samples) - 1)) :: draw(st.sampled_from([1, 7, 10**6]))] = draw(
            st.sampled_from(VALUES)
        )
    kind = draw(st.sampled_from(["wav of floats", "wav of doubles"]))
    with np.errstate(all="ignore"):
        return written(kind, samples, rate)


def target(base: Path) -> Target:
    scanning.THREADS = 2  # for the three files of an example
    for name in ("good", "better"):
        (base / f"{name}.wav").write_bytes(written("wav", noise(16_000), 16_000))
    whole = {kind: written(kind, noise(12_000), 16_000) for kind in FORMATS}
    whole |= {
        f"{kind}, stereo": written(kind, noise(9_000, 2), 48_000) for kind in ("wav", "flac", "ogg", "mp3", "opus")
    }
    endings = {kind: FORMATS[kind.partition(",")[0]][0] for kind in whole}
    kinds = st.sampled_from(sorted(whole))
    edited = st.tuples(kinds, edits).map(lambda pair: (endings[pair[0]], apply(whole[pair[0]], pair[1])))
    of_ogg = st.tuples(kinds.filter(lambda kind: endings[kind] in ("ogg", "opus")), edits)
    rewritten = of_ogg.map(lambda pair: (endings[pair[0]], checksummed(apply(whole[pair[0]], pair[1]))))
    joined = st.tuples(kinds, kinds, st.integers(0, 2000)).map(
        lambda pair: (endings[pair[0]], whole[pair[0]][: pair[2]] + whole[pair[1]][pair[2] // 2 :])
    )
    disguised = st.tuples(st.sampled_from(sorted(set(endings.values()))), kinds).map(
        lambda pair: (pair[0], whole[pair[1]])
    )
    wav = (header_fields() | special_samples()).map(lambda content: ("wav", content))
    inputs: SearchStrategy[Any] = edited | edited | rewritten | joined | disguised | wav | wav
    return Target(inputs, check)
