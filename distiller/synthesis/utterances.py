"""An utterance of the synthetic corpus: everything that determines one recording, and the recording made from it."""

from dataclasses import dataclass, field

import numpy as np
from scipy.signal import lfilter

from distiller.synthesis.espeak import SILENCE, Phone, Prosody, Synthesizer, Voice, joined
from upstream.config import SAMPLE_RATE


@dataclass(frozen=True)
class Conditions:
    """How an utterance was recorded.

    Args:
        silence: seconds before and after the speech.
        tilt: -1 (bright) to 1 (dark), the coefficient of a first-order filter.
        level: RMS of the speech in dB of full scale.
        snr: of the speech over the noise, in dB.
        colour: 0 (white noise) to below 1 (low-pass noise).
        seed: of the noise.
    """

    silence: tuple[float, float] = (0.1, 0.1)
    tilt: float = 0.0
    level: float = -24.0
    snr: float = 40.0
    colour: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Utterance:
    """Everything that determines one recording."""

    id: str
    speaker: str
    text: str
    voice: Voice
    prosody: Prosody = field(default_factory=Prosody)
    conditions: Conditions = field(default_factory=Conditions)


def render(utterance: Utterance, synthesizer: Synthesizer) -> tuple[np.ndarray, list[Phone]]:
    """(sample,) int16 at 16 kHz, and phones without gaps, of one utterance under its conditions."""
    samples, phones = synthesizer.speak(utterance.text, utterance.voice, utterance.prosody)
    mixture = recording(samples, utterance.conditions)
    before = round(utterance.conditions.silence[0] * SAMPLE_RATE)
    onsets = [(symbol, start + before / SAMPLE_RATE) for symbol, start, _ in phones]
    end = (SILENCE, (before + samples.size) / SAMPLE_RATE)
    return mixture, joined([(SILENCE, 0.0), *onsets, end], mixture.size / SAMPLE_RATE)


def recording(samples: np.ndarray, conditions: Conditions) -> np.ndarray:
    """Speech (sample,) as recorded under these conditions: (sample,) int16 at 16 kHz."""
    before, after = (round(seconds * SAMPLE_RATE) for seconds in conditions.silence)
    speech = np.asarray(lfilter([1.0, conditions.tilt], [1.0], samples.astype(np.float64)))  # (sample,)
    speech *= 10 ** (conditions.level / 20) / max(np.sqrt(np.mean(speech**2)), 1e-9)
    speech = np.pad(speech, (before, after))
    noise = np.random.default_rng(conditions.seed).standard_normal(speech.size)
    noise = np.asarray(lfilter([1.0], [1.0, -conditions.colour], noise))
    noise *= 10 ** ((conditions.level - conditions.snr) / 20) / np.sqrt(np.mean(noise**2))
    return np.clip(np.rint(32768 * (speech + noise)), -32768, 32767).astype(np.int16)
