"""The header of an audio file, and why a file cannot be used."""

import os
import stat
from typing import NamedTuple

import soundfile
from soundfile import LibsndfileError

# Seconds by which a file's length may differ from its header's or manifest's: for an MP3 without a tag the length is
# an estimate, off by a frame or two (0.05 s each at low rates).
TOLERANCE = 0.1
UNKNOWN = 2**62  # samples; libsndfile gives its largest number


class Undecodable(Exception):
    """Audio that cannot be used; the message is the reason."""


class Header(NamedTuple):
    """What libsndfile knows about an audio file before reading its samples."""

    samplerate: int
    channels: int
    frames: int


def header(path: str) -> Header:
    """The header of a file.

    Raises:
        Undecodable: it cannot be opened, is not a regular file, or holds no samples.
    """
    try:
        path.encode()
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would block forever
            raise Undecodable("it is not a regular file")
        info = soundfile.info(path)
    except Undecodable:
        raise
    except UnicodeEncodeError as error:
        raise Undecodable("its name is not UTF-8") from error
    except Exception as error:  # libsndfile raises several kinds
        raise Undecodable(reason(error, path)) from error
    if info.frames <= 0:
        raise Undecodable("it holds no samples")
    if info.frames >= UNKNOWN:  # FLAC from a pipe
        raise Undecodable("its header does not say how long it is")
    return Header(info.samplerate, info.channels, info.frames)


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
