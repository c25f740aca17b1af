"""Which files are audio, by their endings."""

from collections import Counter
from collections.abc import Iterable
from pathlib import PurePath

import soundfile

# libsndfile's formats with further suffixes, and those that are seldom audio.
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
    """Numbers of files that libsndfile does not read, by suffix, most frequent first."""
    counts = Counter(ending(path) for path in paths if ending(path) in NOT_READ)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
