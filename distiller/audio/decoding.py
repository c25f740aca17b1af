"""Audio files to 16 kHz mono samples, or the reason why not."""

import warnings
from dataclasses import dataclass
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
from upstream.config import SAMPLE_RATE

MAX_RATE = 1_048_575  # Hz: the highest that FLAC allows, beyond any recorder
MAX_DENOMINATOR = 2**16  # of the ratio of two rates (the filter is 20 times as long); rounds rates by less than 2e-5
TOLERANCE = 0.025  # seconds by which a file's samples may differ from what its header or manifest says

# libsndfile reads every format we support; Lhotse's default would try decoders that are not installed.
set_current_audio_backend("LibsndfileBackend")
with warnings.catch_warnings():
    # Lhotse allows 0.5 s, fills the gap by mirroring, and warns about less; truncated files must not pass for complete.
    warnings.simplefilter("ignore")
    set_audio_duration_mismatch_tolerance(TOLERANCE)


class Undecodable(Exception):
    """Audio that cannot be used; the message is the reason."""


@dataclass(frozen=True)
class Decoder:
    """Decodes audio for an encoder whose shortest input, its receptive field, is `min_samples` at 16 kHz."""

    min_samples: int

    def decode(self, cut: DataCut) -> Tensor:
        """(sample,) float32 at 16 kHz, the mean of the cut's channels.

        Resampling uses scipy's polyphase filter of at most 10 MB: torchaudio's kernel (Lhotse's choice) takes 10 GB for
        a rate that shares no factor with 16 kHz.

        Raises:
            Undecodable: the file is broken or its length is not the declared one, its sampling rate is out of range, or
                its samples are not finite, all zero or too few.
        """
        if cut.sampling_rate > MAX_RATE:
            raise Undecodable(f"its sampling rate is {cut.sampling_rate} Hz, above {MAX_RATE} Hz")
        try:
            with quiet_stderr():
                channels = _in_memory(cut).load_audio()
        except Exception as error:  # decoders raise all kinds of errors
            raise Undecodable(reason(error, source_path(cut))) from error
        if channels is None or channels.size == 0:
            raise Undecodable("it holds no samples")
        samples = channels.mean(axis=0) if len(channels) > 1 else channels[0]  # (sample,) at the file's rate
        if not np.isfinite(samples).all():
            raise Undecodable("it holds NaN or infinite samples")
        if not samples.any():
            raise Undecodable("all its samples are zero")
        if cut.sampling_rate != SAMPLE_RATE:
            ratio = Fraction(SAMPLE_RATE, cut.sampling_rate).limit_denominator(MAX_DENOMINATOR)
            samples = resample_poly(samples, ratio.numerator, ratio.denominator)
        self.check_length(samples.size)
        return torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))

    def check_length(self, samples: int) -> None:
        """Raises: Undecodable: so few samples at 16 kHz do not make a frame."""
        if samples < self.min_samples:
            raise Undecodable(f"{samples} samples at 16 kHz, where one frame takes {self.min_samples}")


def source_path(cut: DataCut) -> str:
    """The path of a cut's audio; ARCHIVE.tar/MEMBER in Lhotse Shar."""
    return str(sources(cut)[0].source)


def sources(cut: DataCut) -> list[AudioSource]:
    """The files that a cut's audio comes from: one, or one for each channel."""
    assert cut.recording is not None  # scanning sets other cuts aside
    return cut.recording.sources


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


def _in_memory(cut: DataCut) -> DataCut:
    """A cut of a Shar archive with its audio's bytes in memory; any other cut unchanged."""
    assert cut.recording is not None
    span = (cut.custom or {}).get("span")
    if span is None:
        return cut
    with open(span["archive"], "rb") as archive:
        archive.seek(span["offset"])
        data = archive.read(span["size"])
    source = fastcopy(sources(cut)[0], type="memory", source=data)
    # "whole": a complete file of a prepared corpus, whose cut is as long as its source, to a fraction of a sample
    seconds = cut.recording.duration if span.get("whole") else cut.duration
    return fastcopy(cut, recording=fastcopy(cut.recording, sources=[source]), duration=seconds)
