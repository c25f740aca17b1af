"""Speakers of the synthetic corpus: each number is a voice, drawn from a seed that depends on that number alone."""

from functools import cache

import numpy as np

from distiller.synthesis.espeak import ACCENTS, Prosody, Voice

SEED = 20_250_901


def speaker_name(number: int) -> str:
    return f"speaker-{number:04d}"


@cache
def speaker_voice(number: int) -> Voice:
    """The voice of speaker `number`: sex, vocal tract length, pitch, and the quality of source and articulation.

    Even numbers are deep voices, odd ones high voices; accents alternate, so any 16 consecutive speakers are balanced.
    """
    random = np.random.default_rng([SEED, number])
    high = number % 2 == 1
    tract = random.uniform(1.03, 1.22) if high else random.uniform(0.84, 1.06)  # formants scale with 1 / tract length
    lowest = random.uniform(135, 210) if high else random.uniform(62, 125)
    breathy = random.random() < 0.3
    return Voice(
        accent=ACCENTS[number // 2 % len(ACCENTS)],
        pitch=(round(lowest), round(lowest * random.uniform(1.25, 1.7))),
        formants=tuple(
            (
                round(100 * tract * random.normal(1.0, 0.03)),
                round(random.uniform(70, 125)),
                round(random.uniform(75, 150)),
            )
            for _ in range(8)
        ),
        flutter=int(random.integers(0, 8)),
        roughness=int(random.integers(0, 5)),
        tone=tuple(
            (frequency, round(amplitude * random.uniform(0.6, 1.3)))
            for frequency, amplitude in ((600, 170), (1200, 135), (2000, 110), (3200, 100))
        ),
        voicing=round(random.uniform(75, 115)),
        consonants=(round(random.uniform(70, 130)), round(random.uniform(70, 130))),
        breath=(0, *(int(random.integers(1, 5)) for _ in range(7))) if breathy else (),
        intonation=int(random.integers(1, 5)),
    )


def speaker_rate(number: int) -> float:
    """The speaker's habitual pace in words per minute."""
    return float(np.random.default_rng([SEED, number, 1]).uniform(165, 215))


def random_prosody(number: int, random: np.random.Generator) -> Prosody:
    """Neutral prosody of one utterance: the speaker's pace and pitch with small variations."""
    return Prosody(
        rate=round(speaker_rate(number) * random.uniform(0.9, 1.1)),
        pitch=round(random.uniform(40, 60)),
        range=round(random.uniform(35, 70)),
    )
