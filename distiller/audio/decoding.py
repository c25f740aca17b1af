"""Audio files to 16 kHz mono samples, or the reason why not."""

import warnings
from fractions import Fraction

import numpy as np
import torch
from lhotse import AudioSource, set_audio_duration_mismatch_tolerance, set_current_audio_backend
from lhotse.cut.data import DataCut
from lhotse.utils import fastcopy
from scipy.signal import resample_poly
from soundfile import LibsndfileError
from torch import Tensor

from distiller.common.progress import quiet_stderr

SAMPLE_RATE = 16_000
MAX_RATE = 1_048_575  # Hz: the highest that FLAC knows, and beyond any recorder
MAX_DENOMINATOR = 2**16  # of the ratio of two rates: the filter is 20 times as long; off by less than 2e-5 beyond it
TOLERANCE = 0.025  # seconds by which a file's samples may differ from what its header or manifest says

# libsndfile reads every format promised here; Lhotse's own choice would try decoders that are not installed.
set_current_audio_backend("LibsndfileBackend")
with warnings.catch_warnings():
    # Lhotse allows 0.5 s, mirrors what is missing, and warns of less; a truncated file should not pass for a whole one.
    warnings.simplefilter("ignore")
    set_audio_duration_mismatch_tolerance(TOLERANCE)


class Undecodable(Exception):
    """Audio that cannot be used; the message is the reason."""


def decode(cut: DataCut, min_samples: int = 400) -> Tensor:
    """(sample,) float32 at 16 kHz, the mean of the cut's channels.

    Resampling is scipy's polyphase filter, of at most 10 MB, where torchaudio's kernel (Lhotse's choice) takes 10 GB
    for a rate that shares no factor with 16 kHz.

    Args:
        min_samples: the extractor's receptive field, the least that gives a frame.

    Raises:
        Undecodable: the file is broken, its length is not what was declared, its rate is none of a recorder, or its
            samples are not finite, all zero or too few.
    """
    if cut.sampling_rate > MAX_RATE:
        raise Undecodable(f"its sampling rate is {cut.sampling_rate} Hz, above {MAX_RATE} Hz")
    try:
        with quiet_stderr():
            channels = _in_memory(cut).load_audio()
    except Exception as error:  # decoders raise whatever they like; the reason is kept
        raise Undecodable(reason(error, source_path(cut))) from error
    if channels is None or channels.size == 0:
        raise Undecodable("it holds no samples")
    samples = channels.mean(axis=0) if len(channels) > 1 else channels[0]  # (sample,) at the file's own rate
    if not np.isfinite(samples).all():
        raise Undecodable("it holds NaN or infinite samples")
    if not samples.any():
        raise Undecodable("all its samples are zero")
    resampled = samples
    if cut.sampling_rate != SAMPLE_RATE:
        ratio = Fraction(SAMPLE_RATE, cut.sampling_rate).limit_denominator(MAX_DENOMINATOR)
        resampled = resample_poly(samples, ratio.numerator, ratio.denominator)
    if resampled.size < min_samples:
        raise Undecodable(too_few(resampled.size, min_samples))
    return torch.from_numpy(np.ascontiguousarray(resampled, dtype=np.float32))


def too_few(samples: int, min_samples: int) -> str:
    """Why a file of so few samples is set aside."""
    return f"{samples} samples at 16 kHz, where one frame takes {min_samples}"


def source_path(cut: DataCut) -> str:
    """Where a cut's audio comes from; for Lhotse Shar ARCHIVE.tar/MEMBER."""
    return str(sources(cut)[0].source)


def sources(cut: DataCut) -> list[AudioSource]:
    """The files that a cut's audio comes from: one, or one for each channel."""
    assert cut.recording is not None  # scanning lets no other cut through
    return cut.recording.sources


def reason(error: BaseException, path: str) -> str:
    """An error of a decoder in a few words, without the path that it is about."""
    if ".tar/" not in path:
        try:
            with open(path, "rb"):
                pass
        except OSError as unreadable:  # libsndfile has only "System error" for a missing file or permission
            return unreadable.strerror or "it cannot be opened"
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, LibsndfileError) and isinstance(cause.code, int)):
        cause = cause.__context__  # Lhotse wraps libsndfile's errors in ones that have no message
    if cause is None:
        return str(error).split("\n")[0].split(". This could be ")[0][:200] or type(error).__name__
    if cause.error_string.startswith("File does not exist or is not a regular file"):
        return "Format not recognised."  # so it says of what is no mp3 within; the file was opened above
    return cause.error_string.removeprefix("Error : ")


def _in_memory(cut: DataCut) -> DataCut:
    """A cut of a Shar archive with the bytes of its audio; any other cut as it is."""
    assert cut.recording is not None
    span = (cut.custom or {}).get("span")
    if span is None:
        return cut
    with open(span["archive"], "rb") as archive:
        archive.seek(span["offset"])
        data = archive.read(span["size"])
    source = fastcopy(sources(cut)[0], type="memory", source=data)
    # of a prepared corpus the cut is as long as its source was, which at another rate may end between two samples
    seconds = cut.recording.duration if span.get("whole") else cut.duration
    return fastcopy(cut, recording=fastcopy(cut.recording, sources=[source]), duration=seconds)
