"""Which files are audio, and what is in them."""

import mmap as memory
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable
from io import FileIO
from mmap import mmap
from pathlib import PurePath
from typing import Any, NamedTuple

import soundfile

from distiller.audio.decoding import TOLERANCE, Undecodable, open_part, reason
from distiller.audio.mpeg import mp3_parts
from distiller.audio.streams import Part, Truncated, flac_parts, ogg_parts, wav_parts

# libsndfile's names whose files end in something else as well, and those of data that are seldom audio.
OTHER_ENDINGS = {
    "AIFF": (".aif", ".aifc"), "AU": (".snd",), "MP3": (".mp2", ".mpga"), "NIST": (".sph",), "OGG": (".oga", ".opus"),
    "WAV": (".wave", ".bwf"), "SVX": (".8svx",),
}  # fmt: skip
NO_AUDIO = {"RAW", "HTK", "MAT4", "MAT5", "MPC2K", "SDS", "WAVEX", "WVE", "XI"}
COMMON = (".wav", ".flac", ".mp3", ".ogg", ".opus")
AUDIO = tuple(
    ending
    for name in soundfile.available_formats()
    if name not in NO_AUDIO
    for ending in (f".{name.lower()}", *OTHER_ENDINGS.get(name, ()))
)
# Audio, and video with audio, that libsndfile does not read.
_OTHERS = (
    "3gp aa3 aac aax ac3 adts alac amr ape asf avi caff dff dsf dts eac3 flv gsm m4a m4b m4p m4r m4v mka mkv mov mp3 "
    "mp4 mpc mpeg mpg ogv ogx opus ra ram rm shn spx tak tta weba webm wma wmv wv wv1 wv2"
)
NOT_READ = frozenset(f".{name}" for name in _OTHERS.split()) - frozenset(AUDIO)


def ending(path: str | PurePath) -> str:
    """The ending of a file's name in lower case."""
    return PurePath(path).suffix.lower()


def endings(paths: Iterable[str | PurePath]) -> dict[str, int]:
    """How many of the files end in what libsndfile does not read, by ending, most first."""
    counts = Counter(ending(path) for path in paths if ending(path) in NOT_READ)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


# --- what is in them

# By libsndfile's name of the format: where the audio is in a file whose header does not say all.
PARTS: dict[str, Callable[[mmap, int, int], list[Part]]] = {
    "MP3": mp3_parts, "OGG": ogg_parts, "FLAC": flac_parts, "WAV": wav_parts, "WAVEX": wav_parts,
}  # fmt: skip


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
