"""Speakers of any language: each is a random voice, drawn from wider ranges than those of the synthetic corpus."""

from dataclasses import dataclass

import numpy as np

from distiller.synthesis.espeak import Prosody
from distiller.synthesis.utterances import Conditions
from distiller.voices.languages import ACCENTS

KLATT = 6  # kinds of voicing of espeak-ng's second synthesiser, klatt


@dataclass(frozen=True)
class Speaker:
    """A voice and how it tends to speak.

    Args:
        accent: one of espeak-ng's.
        voice: lines of an espeak-ng voice file.
        rate: words per minute.
        tilt: of the spectrum, as Conditions.tilt.
    """

    accent: str
    voice: str
    rate: float
    tilt: float


def random_speaker(random: np.random.Generator, language: str) -> Speaker:
    """Accent, vocal tract length, pitch, the quality of the source and of articulation, pace and spectral tilt."""
    high = random.random() < 0.5
    tract = random.uniform(0.98, 1.3) if high else random.uniform(0.8, 1.08)  # formants scale with 1 / tract length
    lowest = random.uniform(120, 260) if high else random.uniform(55, 135)
    flutter, roughness, intonation = random.integers((0, 0, 1), (20, 6, 5))
    lines = [
        f"pitch {lowest:.0f} {lowest * random.uniform(1.15, 1.9):.0f}",
        f"flutter {flutter}",
        f"roughness {roughness}",
        f"intonation {intonation}",
        f"voicing {random.uniform(60, 120):.0f}",
        f"consonants {random.uniform(60, 150):.0f} {random.uniform(60, 150):.0f}",
    ]
    for formant in range(1, 9):
        frequency = 100 * tract * random.normal(1.0, 0.04)
        lines.append(f"formant {formant} {frequency:.0f} {random.uniform(60, 130):.0f} {random.uniform(60, 170):.0f}")
    breakpoints = ((600, 170), (1200, 135), (2000, 110), (3200, 100))
    tone = (f"{frequency} {amplitude * random.uniform(0.5, 1.45):.0f}" for frequency, amplitude in breakpoints)
    lines.append(f"tone {' '.join(tone)}")
    if random.random() < 0.3:
        lines.append(f"breath 0 {' '.join(map(str, random.integers(1, 8, size=7)))}")
    if random.random() < 0.3:
        lines.append(f"klatt {random.integers(1, KLATT + 1)}")
    accent = str(random.choice(ACCENTS[language]))
    return Speaker(accent, "\n".join(lines), random.uniform(120, 260), random.uniform(-0.6, 0.6))


def random_prosody(random: np.random.Generator, speaker: Speaker) -> Prosody:
    """Prosody of one utterance: the speaker's pace and pitch with variations."""
    return Prosody(
        rate=round(speaker.rate * random.uniform(0.85, 1.15)),
        pitch=round(random.uniform(25, 75)),
        range=round(random.uniform(20, 90)),
    )


def random_conditions(random: np.random.Generator, speaker: Speaker) -> Conditions:
    """Conditions of one utterance: silence, tilt, level and faint noise."""
    return Conditions(
        silence=(round(random.uniform(0.02, 0.4), 3), round(random.uniform(0.02, 0.4), 3)),
        tilt=round(speaker.tilt + random.uniform(-0.15, 0.15), 3),
        level=round(random.uniform(-36, -18), 1),
        snr=round(random.uniform(20, 60), 1),
        colour=round(random.uniform(0.0, 0.95), 3),
        seed=int(random.integers(2**32)),
    )
