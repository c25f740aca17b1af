"""What is in an audio file."""

import mmap as memory
import os
import stat
from collections.abc import Callable
from io import FileIO
from mmap import mmap
from typing import Any, NamedTuple

import soundfile
from soundfile import LibsndfileError

from distiller.containers.mpeg import mp3_parts
from distiller.containers.streams import Part, Truncated, flac_parts, ogg_parts, open_part, wav_parts

TOLERANCE = 0.025  # seconds by which a file's samples may differ from what its header or manifest says
# By libsndfile's name of the format: the parts of a file, each a file of its own, where its header does not say all;
# none where it is right. Arguments: the file, its samples by libsndfile, and how many may be missing.
PARTS: dict[str, Callable[[mmap, int, int], list[Part]]] = {
    "MP3": mp3_parts, "OGG": ogg_parts, "FLAC": flac_parts, "WAV": wav_parts, "WAVEX": wav_parts,
}  # fmt: skip


class Undecodable(Exception):
    """Audio that cannot be used; the message is the reason."""


class Header(NamedTuple):
    """What is in an audio file."""

    samplerate: int
    channels: int
    frames: int
    parts: list[list[Any]]  # (offset, bytes, prefix, frames) of each, if its own header does not say all of this


def header(path: str) -> Header:
    """What is in a file, of which only a few places are read, unless they disagree.

    Raises:
        Undecodable: it cannot be opened, is no regular file, holds no samples, or less than its header declares.
    """
    try:
        path.encode()
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
            raise Undecodable("it is not a regular file")
        info = soundfile.info(path)
        parts = _parts(path, info)
    except Undecodable:
        raise
    except UnicodeEncodeError as error:
        raise Undecodable("its name is not UTF-8") from error
    except Exception as error:  # libsndfile raises several kinds
        raise Undecodable(reason(error, path)) from error
    if not parts and info.frames <= 0:
        raise Undecodable("it holds no samples")
    if not parts:
        return Header(info.samplerate, info.channels, info.frames, [])
    kinds = {(one.samplerate, one.channels) for _, one in parts}
    if len(kinds) > 1:
        declared, held = info.frames / info.samplerate, sum(one.frames / one.samplerate for _, one in parts)
        why = "joined from different rates or channels"
        raise Undecodable(f"its declared samples make {declared:.2f} s, but it holds {held:.2f} s, {why}")
    rows = [[part.offset, part.size, part.prefix.hex(), one.frames] for part, one in parts]
    return Header(*kinds.pop(), sum(one.frames for _, one in parts), rows)


def _parts(path: str, info: Any) -> list[tuple[Part, Any]]:
    """The parts of a file whose header does not say all, with what libsndfile says of each."""
    find = PARTS.get(info.format)
    if find is None or not os.path.getsize(path):
        return []
    with FileIO(path) as file:
        try:
            with mmap(file.fileno(), 0, access=memory.ACCESS_READ) as data:
                if hasattr(memory, "MADV_RANDOM"):  # not on Windows
                    data.madvise(memory.MADV_RANDOM)  # read nothing around the few places
                parts = find(data, info.frames, int(TOLERANCE * info.samplerate))
        except Truncated as error:
            declared, held = (samples / info.samplerate for samples in (error.declared, error.held))
            raise Undecodable(f"its declared samples make {declared:.2f} s, but it holds {held:.2f} s") from error
        return [(part, soundfile.info(open_part(file, part))) for part in parts]


def reason(error: BaseException, path: str) -> str:
    """A decoder's error in a few words, without the path."""
    if ".tar/" not in path:
        try:
            with open(path, "rb"):
                pass
        except OSError as unreadable:  # libsndfile only says "System error"
            return unreadable.strerror or "it cannot be opened"
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, LibsndfileError) and isinstance(cause.code, int)):
        cause = cause.__context__  # Lhotse wraps libsndfile's errors in errors without a message
    if cause is None:
        return str(error).split("\n")[0].split(". This could be ")[0][:200] or type(error).__name__
    if cause.error_string.startswith("File does not exist or is not a regular file"):
        return "Format not recognised."  # libsndfile's answer to a damaged mp3; we have just opened the file
    return cause.error_string.removeprefix("Error : ")
