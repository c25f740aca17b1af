"""Effects on the samples of one utterance. None of them shifts the signal in time, so every frame keeps its units.

All are (sample,) float32 at 16 kHz. Filters have no delay, and an impulse response begins with its direct sound.
"""

import io
from typing import Any

import numpy as np
import scipy.fft
import soundfile
from numpy.typing import NDArray
from scipy.signal import oaconvolve

from upstream.config import SAMPLE_RATE

Samples = NDArray[np.float32]
FFT: Any = scipy.fft  # it keeps float32, and declares no types
RUMBLE = 50.0  # Hz, below which coloured noise is flat; otherwise most of its power would be inaudible
FIRST_ECHO = 0.002  # seconds after the direct sound
LONGEST_RESPONSE = 2.0  # seconds of a recorded impulse response that are used
RINGING = 1024  # samples of silence that keep a filter's end apart from its beginning
SLOPE = 1.2  # a filter's passband extends from its lower limit times this to its upper one divided by this
TELEPHONE = (300.0, 3400.0)  # Hz
CODECS = {"mu-law": "ULAW", "a-law": "ALAW", "gsm": "GSM610"}  # libsndfile's names
FULL_LEVEL = 0.9  # peak of a codec's input


def power(samples: Samples) -> float:
    """Mean square."""
    return float(np.vdot(samples, samples)) / max(1, len(samples))


def at_snr(other: Samples, speech: Samples, snr: float) -> Samples:
    """`other` scaled so that its power is `snr` dB below that of the speech; silence stays silence."""
    level = power(other)
    return other * np.float32(np.sqrt(power(speech) / level) * 10 ** (-snr / 20)) if level else other


def coloured_noise(random: np.random.Generator, samples: int, colour: float) -> Samples:
    """Gaussian noise whose power falls as 1 / frequency^colour."""
    total = FFT.next_fast_len(max(2, samples), real=True)
    bins = total // 2 + 1
    spectrum = random.standard_normal(2 * bins, dtype=np.float32).view(np.complex64)
    frequencies = np.maximum(np.arange(bins, dtype=np.float32), np.float32(RUMBLE * total / SAMPLE_RATE))
    spectrum *= frequencies ** np.float32(-colour / 2)
    return FFT.irfft(spectrum, total)[:samples]


def decaying_response(random: np.random.Generator, seconds: float, direct: float) -> Samples:
    """An impulse response of Gaussian echoes that lose 60 dB in `seconds` (Polack's model); its energy is 1.

    Args:
        direct: level of the direct sound, which is the first sample, above all echoes, in dB.
    """
    count = max(2, int(seconds * SAMPLE_RATE))
    response = random.standard_normal(count, dtype=np.float32)
    response *= np.exp(np.linspace(0, -3 * np.log(10), count, dtype=np.float32))
    response[: min(count - 1, int(FIRST_ECHO * SAMPLE_RATE))] = 0.0
    response *= 10 ** (-direct / 20) / np.linalg.norm(response)
    response[0] = 1.0
    return response / np.float32(np.linalg.norm(response))


def from_direct_sound(recorded: Samples) -> Samples:
    """A recorded impulse response from its loudest sample on, which is its direct sound; its energy is 1."""
    first = int(np.abs(recorded).argmax())
    response = recorded[first : first + int(LONGEST_RESPONSE * SAMPLE_RATE)]
    return response * (np.sign(response[0]) / np.linalg.norm(response))


def reverberated(speech: Samples, response: Samples) -> Samples:
    """The reverberated speech, of the same length; echoes after the end are cut off."""
    return oaconvolve(speech, response)[: len(speech)]


def band_limited(speech: Samples, lowest: float, highest: float) -> Samples:
    """The speech without frequencies below `lowest` and above `highest`, in Hz."""
    total = FFT.next_fast_len(len(speech) + RINGING, real=True)
    spectrum = FFT.rfft(speech, total)
    return FFT.irfft(spectrum * _passed(len(spectrum), SAMPLE_RATE / total, lowest, highest), total)[: len(speech)]


def telephoned(speech: Samples, codec: str) -> Samples:
    """300 to 3,400 Hz at 8 kHz, through a codec: one of CODECS, or `linear`, which does nothing further."""
    total = 4 * FFT.next_fast_len((len(speech) + RINGING + 3) // 4, real=True)
    narrow, bins = total // 2, total // 4 + 1  # samples at 8 kHz, and frequencies up to 4 kHz
    spectrum = FFT.rfft(speech, total)[:bins] * _passed(bins, SAMPLE_RATE / total, *TELEPHONE)
    heard = FFT.irfft(spectrum, narrow)  # twice as loud, until it is back at the original length
    peak = float(np.abs(heard).max())
    if codec in CODECS and peak > 0:
        heard = _coded(heard * np.float32(FULL_LEVEL / peak), CODECS[codec]) * np.float32(peak / FULL_LEVEL)
    return FFT.irfft(FFT.rfft(heard, narrow), total)[: len(speech)]


def amplified(speech: Samples, decibels: float, clip: bool) -> Samples:
    """The speech at another level; with `clip`, clipped at -1 and 1."""
    louder = speech * np.float32(10 ** (decibels / 20))
    return louder.clip(-1.0, 1.0) if clip else louder


def _passed(bins: int, step: float, lowest: float, highest: float) -> Samples:
    """The amplitude response of a band-pass filter; the bins are `step` Hz apart."""
    edges = [lowest, lowest * SLOPE, max(highest / SLOPE, lowest * SLOPE), highest]
    shares = np.interp(np.arange(bins) * step, edges, [0.0, 1.0, 1.0, 0.0])
    return shares.astype(np.float32)


def _coded(samples: Samples, subtype: str) -> Samples:
    """Samples at 8 kHz, encoded and decoded by libsndfile; it fills the last block with silence."""
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE // 2, format="WAV", subtype=subtype)
    file.seek(0)
    decoded = np.asarray(soundfile.read(file, dtype="float32")[0], dtype=np.float32)
    return decoded[: len(samples)]
