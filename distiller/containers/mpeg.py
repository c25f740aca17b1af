"""MP3 files whose tag says less than they hold, that have none, or that were joined."""

import struct
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from mmap import mmap
from typing import NamedTuple

from distiller.containers.streams import Part, Truncated

SMALL = 2**14  # bytes of a file whose frames are counted anyway
UNEVEN = 0.25  # share by which an estimate of the number of frames may be off
KBPS = {  # by (MPEG 1, layer), from the bit rate's index
    (True, 1): range(0, 449, 32),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


class Frame(NamedTuple):
    """What the header of an MPEG frame says."""

    bytes: int
    samples: int
    kind: tuple[int, int, bool]  # version and layer, rate, mono: the same in all frames of a stream
    tag: int  # where Xing's or LAME's tag is in the first frame


class Stream(NamedTuple):
    """Frames in a row that one encoder wrote: where they begin and end, and how many there are of how many samples."""

    begin: int
    end: int
    frames: int
    declared: int | None  # frames, by the tag at its beginning
    audio: int  # where the first frame is that is no tag
    samples: int


@lru_cache(maxsize=4096)
def _mpeg_frame(header: bytes) -> Frame | None:
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer, index, rate = (header[1] >> 3) & 3, 4 - ((header[1] >> 1) & 3), header[2] >> 4, (header[2] >> 2) & 3
    if version == 1 or layer == 4 or index in (0, 15) or rate == 3:
        return None
    first = version == 3
    hertz = (44_100, 48_000, 32_000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
    samples = 384 if layer == 1 else 1152 if layer == 2 or first else 576
    slot, mono = 4 if layer == 1 else 1, header[3] >> 6 == 3
    size = (samples // 8 // slot * KBPS[first, layer][index] * 1000 // hertz + ((header[2] >> 1) & 1)) * slot
    return Frame(size, samples, (header[1] & 0xFE, hertz, mono), 4 + ((17, 9), (32, 17))[first][mono])


def _tag_size(data: mmap, at: int) -> int:
    """Bytes of a tag (ID3, APE) at a position; 0 if there is none."""
    if data[at : at + 3] == b"ID3":
        return 10 + sum(
            (byte & 127) << shift for byte, shift in zip(data[at + 6 : at + 10], (21, 14, 7, 0), strict=False)
        )
    if data[at : at + 3] == b"TAG":
        return 128
    return 32 + int.from_bytes(data[at + 12 : at + 16], "little") if data[at : at + 8] == b"APETAGEX" else 0


def _mpeg_frames(data: mmap, at: int = 0) -> Iterator[tuple[int, Frame]]:
    """The complete frames from a position on. After anything else, a frame counts only if another follows it."""
    in_step, size = False, len(data)
    while 0 <= at < size:
        frame = _mpeg_frame(data[at : at + 4])
        following = at + (frame.bytes if frame else 0)
        if (
            frame
            and following <= size
            and (in_step or following == size or _mpeg_frame(data[following : following + 4]))
        ):
            yield at, frame
            at, in_step = following, True
        elif tag := _tag_size(data, at):
            at += tag
        else:
            at, in_step = data.find(b"\xff", at + 1), False


def _declared(data: mmap, at: int, frame: Frame) -> tuple[int | None, int | None] | None:
    """Frames and bytes by Xing's, LAME's or Fraunhofer's tag in a frame, if it has one."""
    tag = data[at + frame.tag : at + frame.tag + 16]
    if tag[:4] in (b"Xing", b"Info"):
        flags, frames, size = struct.unpack(">III", tag[4:16].ljust(12, b"\0"))
        return (frames if flags & 1 else None), (size if flags & 3 == 3 else None)
    if data[at + 36 : at + 40] == b"VBRI":
        size, frames = struct.unpack(">II", data[at + 46 : at + 54].ljust(8, b"\0"))
        return frames, size
    return None


def _mpeg_streams(data: mmap) -> list[Stream]:
    streams: list[Stream] = []
    kind = None
    for at, frame in _mpeg_frames(data):
        tag = _declared(data, at, frame)
        if tag or frame.kind != kind:
            kind = frame.kind
            streams.append(Stream(at, at, 0, tag[0] if tag else None, at + (frame.bytes if tag else 0), frame.samples))
        streams[-1] = streams[-1]._replace(end=at + frame.bytes, frames=streams[-1].frames + (tag is None))
    return [stream for stream in streams if stream.frames]


def _estimated(data: mmap, at: int, size: int) -> float:
    """About how many frames there are in so many bytes, from 4 at each of 16 places."""
    places = (at + size * place // 16 for place in range(16))
    frames = [frame for place in places for _, frame in islice(_mpeg_frames(data, place), 4)]
    return size * sum(1 / frame.bytes for frame in frames) / max(1, len(frames))  # places hit long frames more often


def mp3_parts(data: mmap, frames: int, tolerance: int) -> list[Part]:
    """As `distiller.containers.headers.PARTS`."""
    at, first = next(_mpeg_frames(data), (0, None))
    if first is None or first.kind[0] & 6 != 2:  # tags are in layer III only
        return []
    declared, size = _declared(data, at, first) or (None, None)
    ends = declared and size and 0 <= len(data) - at - size <= 3 * size // declared
    if ends and len(data) > SMALL and abs(_estimated(data, at, size or 0) / (declared or 1) - 1) < UNEVEN:
        return []
    streams = _mpeg_streams(data)
    if len(streams) == 1:
        declared, held = streams[0].declared, streams[0].frames
        if declared is not None and declared > held + 1:
            raise Truncated(frames, held * first.samples)
        if abs(held - declared) <= 1 if declared is not None else abs(held * first.samples - frames) <= tolerance:
            return []
    return [_mpeg_part(data, stream) for stream in streams]


def _mpeg_part(data: mmap, stream: Stream) -> Part:
    """A stream, with a tag that has the right number of frames in place of one that has not."""
    if stream.declared is not None and abs(stream.declared - stream.frames) <= 1:
        return Part(stream.begin, stream.end - stream.begin)
    header = data[stream.audio : stream.audio + 4]
    header = bytes([0xFF, header[1] | 1, 0x80 | header[2] & 0x0C, header[3]])  # without checksum, of medium bit rate
    frame = _mpeg_frame(header)
    assert frame is not None
    tag = header.ljust(frame.tag, b"\0") + b"Info" + struct.pack(">II", 1, stream.frames)
    return Part(stream.audio, stream.end - stream.audio, tag.ljust(frame.bytes, b"\0"))
