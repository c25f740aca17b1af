"""Where the audio is in a compressed file: libsndfile stops where the first header in it says that the audio ends.

Files are joined with `cat`, recorded by programs that never return to write the length into the header, or cut off by
a lost connection. These functions look at a few places of a file, and walk through all of it only if those disagree
with its header.
"""

import io
import math
import struct
from collections.abc import Iterator
from io import FileIO
from itertools import pairwise
from mmap import mmap
from typing import BinaryIO, NamedTuple, cast

BUFFER = 65_536  # bytes read at once


class Part(NamedTuple):
    """Bytes of a file that libsndfile reads as a complete file, after `prefix`."""

    offset: int
    size: int
    prefix: bytes = b""


class Truncated(Exception):
    """A file ends before what its header declares."""

    def __init__(self, declared: int, held: int) -> None:
        super().__init__(declared, held)
        self.declared, self.held = declared, held  # samples


class Slice(io.RawIOBase):
    """A part of an open file as a file of its own."""

    def __init__(self, file: FileIO, part: Part) -> None:
        self.file, self.part = file, part
        self.size, self.at = len(part.prefix) + part.size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence])
        return self.at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count, behind = max(0, min(len(buffer), self.size - self.at)), self.at - len(self.part.prefix)
        if behind < 0:
            data = self.part.prefix[self.at : self.at + count]
        else:
            self.file.seek(self.part.offset + behind)
            data = self.file.read(count)
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


def open_part(file: FileIO, part: Part) -> BinaryIO:
    """A part of an open file, as a file that soundfile reads."""
    return cast(BinaryIO, io.BufferedReader(Slice(file, part), BUFFER))


# --- Ogg


def _ogg_pages(data: mmap) -> Iterator[tuple[int, bool]]:
    """Where each page is, and whether a stream begins there."""
    at = 0
    while (at := data.find(b"OggS\0", at)) >= 0:
        segments = data[at + 27 : at + 27 + data[at + 26]] if at + 27 <= len(data) else b""
        yield at, bool(data[at + 5 : at + 6] > b"\1" and data[at + 5] & 2)
        at += 27 + len(segments) + sum(segments)


def ogg_parts(data: mmap, frames: int, tolerance: int) -> list[Part]:
    """As `distiller.containers.headers.PARTS`. Pages have the number of their stream, and count from 0 in it."""
    places = [data.find(b"OggS\0", len(data) * eighth // 8) for eighth in range(8)] + [data.rfind(b"OggS\0")]
    places = [at for at in dict.fromkeys(places) if 0 <= at <= len(data) - 27]
    pages = [struct.unpack("<II", data[at + 14 : at + 22]) for at in places]  # stream, page
    in_order = all(before[1] < after[1] for before, after in pairwise(pages))
    if len({stream for stream, _ in pages}) == 1 and in_order:
        return []
    begins = [at for at, begins in _ogg_pages(data) if begins]
    ends = [*begins[1:], len(data)]
    return [Part(begin, end - begin) for begin, end in zip(begins, ends, strict=True)] if len(begins) > 1 else []


# --- FLAC

MARK = b"fLaC\0\0\0\x22"  # and the first block of metadata, STREAMINFO, follows
BITS = {1: 8, 2: 12, 4: 16, 5: 20, 6: 24, 7: 32}  # of a sample, by the code in a frame's header
TAIL = 2**18  # bytes, more than any frame
SMALL = 2**16  # bytes of a file that is searched for a second stream anyway
UNEVEN = 0.35  # share of the samples by which a position in a file may be ahead of the same share of its bytes


class StreamInfo(NamedTuple):
    """What the header of a FLAC stream says."""

    block: int  # the samples of a frame, if all have the same
    channels: int
    bits: int
    samples: int


def _stream_info(data: mmap, at: int) -> StreamInfo:
    packed = int.from_bytes(data[at + 18 : at + 26], "big")  # rate 20, channels 3, bits 5, samples 36
    block = int.from_bytes(data[at + 10 : at + 12], "big")
    return StreamInfo(block, ((packed >> 41) & 7) + 1, ((packed >> 36) & 31) + 1, packed & (2**36 - 1))


def _flac_ends(data: mmap, begin: int, end: int, info: StreamInfo) -> Iterator[int]:
    """The samples up to the end of each frame in the last bytes of a stream, the last frame first."""
    low, at = max(begin, end - TAIL), end
    while (at := data.rfind(b"\xff", low, at)) >= 0:
        if samples := _flac_frame(data[at : at + 16], info):
            yield samples


def _flac_passes(data: mmap, at: int, info: StreamInfo) -> float:
    """The share of the declared samples that lie before the first frame behind a position."""
    end = at + TAIL
    while (at := data.find(b"\xff", at + 1, end)) >= 0:
        if samples := _flac_frame(data[at : at + 16], info):
            return samples / max(1, info.samples)
    return math.inf


def _flac_frame(header: bytes, info: StreamInfo) -> int | None:
    """The samples up to the end of the frame that has this header; None if it is none (RFC 9639, section 9.1)."""
    if len(header) < 6 or header[0] != 0xFF or header[1] & 0xFE != 0xF8:
        return None
    size, channels, bits = header[2] >> 4, header[3] >> 4, (header[3] >> 1) & 7
    length = 1 if header[4] < 0x80 else 8 - (header[4] ^ 0xFF).bit_length()  # of the number, coded as in UTF-8
    after = 4 + length + {6: 1, 7: 2}.get(size, 0) + {12: 1, 13: 2, 14: 2}.get(header[2] & 15, 0)
    if after >= len(header) or not 1 <= length <= 7 or _crc8(header[:after]) != header[after]:
        return None
    if (channels + 1 if channels < 8 else 2) != info.channels or BITS.get(bits, info.bits) != info.bits or size == 0:
        return None
    number = header[4] & (0x7F if length == 1 else (1 << (7 - length)) - 1)
    for byte in header[5 : 4 + length]:
        number = number << 6 | byte & 63
    given = int.from_bytes(header[4 + length : 5 + length + (size == 7)], "big") + 1
    samples = {1: 192, 6: given, 7: given}.get(size) or (576 << (size - 2) if size < 6 else 256 << (size - 8))
    return (number if header[1] & 1 else number * info.block) + samples


def _crc8(content: bytes) -> int:
    value = 0
    for byte in content:
        value ^= byte
        for _ in range(8):
            value = (value << 1 ^ (7 if value & 0x80 else 0)) & 0xFF
    return value


def flac_parts(data: mmap, frames: int, tolerance: int) -> list[Part]:
    """As `distiller.containers.headers.PARTS`. The header of each frame has its number in the stream."""
    begin = data.find(MARK)
    if begin < 0:
        return []
    info, size = _stream_info(data, begin), len(data)
    if size > SMALL and info.samples in _flac_ends(data, begin, size, info):
        passed = [_flac_passes(data, size * quarter // 4, info) - quarter / 4 for quarter in (1, 2)]
        if max(map(abs, passed)) < UNEVEN:
            return []
    begins = [begin]
    while (begin := data.find(MARK, begin + 1)) >= 0:
        begins.append(begin)
    if len(begins) == 1 and info.samples in _flac_ends(data, begins[0], size, info):
        return []
    found = [_flac_part(data, begin, end) for begin, end in zip(begins, [*begins[1:], len(data)], strict=True)]
    return [part for part in found if part is not None]


def _flac_part(data: mmap, begin: int, end: int) -> Part | None:
    """A stream, with the right number of samples in place of a wrong one; None if it has no frame."""
    info = _stream_info(data, begin)
    ends = list(_flac_ends(data, begin, end, info))
    if not ends or info.samples in ends:
        return Part(begin, end - begin) if ends else None
    if ends[0] < info.samples:
        raise Truncated(info.samples, ends[0])
    fixed = int.from_bytes(data[begin + 18 : begin + 26], "big") >> 36 << 36 | ends[0]
    prefix = data[begin : begin + 18] + fixed.to_bytes(8, "big")
    return Part(begin + 26, end - begin - 26, prefix)


# --- WAV


def wav_parts(data: mmap, frames: int, tolerance: int) -> list[Part]:
    """As `distiller.containers.headers.PARTS`. Programs that are interrupted leave 0 as the number of bytes."""
    at = data.find(b"data\0\0\0\0", 12, 4096)
    size = len(data) - at - 8
    return [Part(at + 8, size, data[: at + 4] + struct.pack("<I", size))] if frames == 0 and at > 0 and size > 0 else []
