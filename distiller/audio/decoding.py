"""Audio files to 16 kHz mono samples, or the reason why not."""

import io
import math
import tarfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import BinaryIO, cast

import numpy as np
import torch
from lhotse import AudioSource, set_audio_duration_mismatch_tolerance, set_current_audio_backend
from lhotse.cut.data import DataCut
from lhotse.utils import compute_num_samples, fastcopy
from numpy.typing import NDArray
from scipy.signal import resample_poly
from soundfile import SoundFile
from torch import Tensor

from distiller.audio.headers import TOLERANCE, Undecodable, reason
from distiller.audio.windows import source_samples, window_of
from distiller.common.progress import quiet_stderr
from upstream.config import SAMPLE_RATE

MAX_RATE = 1_048_575  # Hz: the highest that FLAC allows, beyond any recorder
MAX_DENOMINATOR = 2**16  # of the ratio of two rates (the filter is 20 times as long); rounds rates by less than 2e-5
HALF_FILTER = 10  # half the length of scipy's filter, in samples of the lower of two rates
WARM_UP = 1.0  # seconds decoded before a window: mp3 and the like depend on earlier audio
BLOCK = 2**20  # samples
CANCELLED = 0.02  # see `mono`
FLAC = b"fLaC\0\0\0\x22"
COMPRESSED = (b"OggS", FLAC, b"ID3", b"\xff")  # first bytes of files without a chunk that declares the audio's size
TAGS = (b"APETAGEX", b"TAG")  # may follow the audio of an MP3
ROUNDING = 1e-6  # of float32: audio that varies less, relative to its level, is constant

# libsndfile reads every format we support; Lhotse's default would try decoders that are not installed.
set_current_audio_backend("LibsndfileBackend")
with warnings.catch_warnings():
    # Lhotse allows 0.5 s, fills the gap by mirroring, and warns about less; truncated files must not pass as complete.
    warnings.simplefilter("ignore")
    set_audio_duration_mismatch_tolerance(TOLERANCE)


@dataclass(frozen=True)
class Decoder:
    """Decodes audio for an encoder whose shortest input, its receptive field, is `min_samples` at 16 kHz."""

    min_samples: int

    def decode(self, cut: DataCut) -> Tensor:
        """(sample,) float32 at 16 kHz, one channel; for a window, exactly those samples of the whole recording.

        Resampling uses scipy's polyphase filter of at most 10 MB: torchaudio's kernel (Lhotse's choice) takes 10 GB for
        a rate that shares no factor with 16 kHz.

        Raises:
            Undecodable: the file is broken or its length is not the declared one, its sampling rate is out of range, or
                its samples are not finite, all equal or too few.
        """
        if cut.sampling_rate > MAX_RATE:
            raise Undecodable(f"its sampling rate is {cut.sampling_rate} Hz, above {MAX_RATE} Hz")
        ratio = Fraction(SAMPLE_RATE, cut.sampling_rate).limit_denominator(MAX_DENOMINATOR)
        up, down = ratio.numerator, ratio.denominator
        whole, first, last = window_of(cut)
        total = source_samples(whole)
        begin, end, start, stop = 0, total, 0, total  # the window, and the range to read; both in samples of the source
        if last is not None:
            begin, end = first * down // up, min(total, math.ceil(last * down / up))
            margin = math.ceil(HALF_FILTER * max(up, down) / up) + 2
            # A whole number of the filter's cycles is skipped, so that every sample gets the same filter phase.
            start = max(0, begin - margin - int(WARM_UP * cut.sampling_rate)) // down * down
            stop = min(total, end + margin)
        samples = mono(_load(whole, start, stop))
        own = samples[begin - start : end - start]
        if not own.size:
            raise Undecodable("it holds no samples")
        if not own.any():
            raise Undecodable("all its samples are zero")
        if cut.sampling_rate != SAMPLE_RATE:
            samples = resample_poly(samples, up, down)
        before = start // down * up
        samples = samples if last is None else samples[first - before : last - before]
        if not np.isfinite(samples).all():  # large ones overflow in the filter
            raise Undecodable("it holds NaN or infinite samples")
        self.check_length(samples.size)
        low, high = float(own.min()), float(own.max())
        if high - low <= ROUNDING * max(-low, high):
            raise Undecodable(f"all its samples are {high:.3g}")
        return torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))

    def check_length(self, samples: int) -> None:
        """Raises: Undecodable: too few samples at 16 kHz for a frame."""
        if samples < self.min_samples:
            raise Undecodable(f"it has {samples} samples at 16 kHz, but one frame needs {self.min_samples}")


def source_path(cut: DataCut) -> str:
    """The path of a cut's audio; ARCHIVE.tar/MEMBER in Lhotse Shar."""
    return str(sources(cut)[0].source)


def sources(cut: DataCut) -> list[AudioSource]:
    """The files that a cut's audio comes from: one, or one for each channel."""
    assert cut.recording is not None  # scanning sets other cuts aside
    return cut.recording.sources


def mono(channels: NDArray[np.float32]) -> NDArray[np.float32]:
    """(channel, sample) -> (sample,): the mean; one of the loudest channels if they cancel each other.

    The variance of the mean of n channels, times n^2, equals the sum of their variances if they are uncorrelated, and
    more if they are alike. Less than a 50th of the sum means inverted polarity, as from a miswired cable.
    """
    if len(channels) == 1:
        return channels[0]
    mean = channels.mean(axis=0)
    each = _variation(channels)  # (channel,)
    cancelled = len(channels) ** 2 * _variation(mean[None])[0] < CANCELLED * each.sum()
    loud = each >= each.max() / 2  # not just the loudest, which could differ from window to window
    return channels[loud.argmax()] if cancelled else mean


def _variation(channels: NDArray[np.float32]) -> NDArray[np.float64]:
    """(channel, sample) -> (channel,): variance times samples, in blocks, so that hours of audio take little memory."""
    blocks = np.array_split(channels, range(BLOCK, channels.shape[1], BLOCK), axis=1)
    return np.sum([block.var(axis=1, dtype=np.float64) * block.shape[1] for block in blocks], axis=0)


def _load(cut: DataCut, start: int, stop: int) -> NDArray[np.float32]:
    """(channel, sample): samples `start` to `stop` of a cut at its own rate.

    Raises:
        Undecodable: the file is broken, or its length is not the declared one.
    """
    assert cut.recording is not None
    try:
        with quiet_stderr(), ExitStack() as stack:
            files = [stack.enter_context(_opened(source, cut)) for source in sources(cut)]
            channels = _part(cut, files, start, stop).load_audio()
            if stop == source_samples(cut) and cut.end > cut.recording.duration - TOLERANCE:
                for file in files:
                    _check_is_read(file, cut.recording.duration)
    except Undecodable:
        raise
    except Exception as error:  # decoders raise all kinds of errors
        raise Undecodable(_why(error, cut)) from error
    if channels is None or channels.size == 0:
        raise Undecodable("it holds no samples")
    return channels[:, start:stop] if cut.recording.transforms else channels


@contextmanager
def _opened(source: AudioSource, cut: DataCut) -> Iterator[BinaryIO]:
    """The file of a source; in Lhotse Shar, its part of the archive."""
    span = (cut.custom or {}).get("span")
    if span is None:
        with open(source.source, "rb") as file:
            yield file
        return
    member = tarfile.TarInfo(cut.id)
    member.offset_data, member.size = span["offset"], span["size"]
    with tarfile.open(span["archive"], "r:") as archive:
        yield cast(BinaryIO, archive.extractfile(member))


def _part(cut: DataCut, files: Sequence[BinaryIO], start: int, stop: int) -> DataCut:
    """Samples `start` to `stop` of a cut, from open files; the whole cut if it is transformed after reading."""
    assert cut.recording is not None
    opened = [fastcopy(source, type="file", source=file) for source, file in zip(sources(cut), files, strict=True)]
    unchanged, rate, total = not cut.recording.transforms, cut.sampling_rate, source_samples(cut)
    cut = fastcopy(cut, recording=fastcopy(cut.recording, sources=opened))
    if not unchanged or ((start, stop) == (0, total) and "span" not in (cut.custom or {})):
        return cut
    begin = compute_num_samples(cut.start, rate) + start
    return fastcopy(cut, start=begin / rate, duration=(stop - start) / rate)


def _check_is_read(file: BinaryIO, declared: float) -> None:
    """libsndfile stops where a compressed file's header says that it ends, though streams may be concatenated.

    Args:
        file: after its last sample was read.
        declared: seconds, by its header.

    Raises:
        Undecodable: bytes were left unread.
    """
    place, rest = file.tell(), file.read(len(TAGS[0]))
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    beginning = file.read(len(FLAC))
    if beginning == FLAC:  # seeking may have led into another stream: look for the second one
        second = file.read().find(FLAC)
        place = len(FLAC) + second if second >= 0 else place
    held = declared * size / place
    if beginning.startswith(COMPRESSED) and held > declared + TOLERANCE and not rest.startswith(TAGS):
        raise Undecodable(f"its header declares {declared:.2f} s, but it holds about {held:.2f} s (joined files?)")


def _why(error: Exception, cut: DataCut) -> str:
    """Why a cut cannot be read: the length of its file, if it differs from its header's or manifest's."""
    path, recording = source_path(cut), cut.recording
    if recording is not None and ".tar/" not in path and not recording.transforms:
        held = _decodable(path)
        if 0 < held < recording.duration - TOLERANCE:
            return f"its declared length is {recording.duration:.2f} s, but only {held:.2f} s can be decoded"
    return reason(error, path)


@lru_cache(maxsize=64)
def _decodable(path: str) -> float:
    """Seconds until a file ends or is broken; 0 if it cannot be opened."""
    seconds = 0.0
    with quiet_stderr(), suppress(Exception), SoundFile(path) as file:
        while block := len(file.read(file.samplerate // 10 + 1)):
            seconds += block / file.samplerate
    return seconds
