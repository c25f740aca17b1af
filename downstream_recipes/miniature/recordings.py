"""Synthetic recordings for the miniature corpora, under conditions that depend on the recording's name."""

import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from distiller.synthesis.espeak import SAMPLE_RATE, Phone, Prosody
from distiller.synthesis.speakers import random_prosody, speaker_voice
from distiller.synthesis.utterances import Conditions, Utterance

Render = Callable[[Utterance], tuple[np.ndarray, list[Phone]]]  # -> (sample,) int16 at 16 kHz, phones


class Studio:
    """Speaks the sentences of the corpora. `scale` multiplies their number."""

    def __init__(self, render: Render, scale: float = 1.0) -> None:
        self.render, self.scale = render, scale

    def count(self, full: int, minimum: int = 1) -> int:
        """The number of items in a corpus: `full` at scale 1."""
        return max(minimum, round(full * self.scale))

    def recordings(self, sizes: Mapping[str, int], minimum: int) -> Iterator[tuple[str, int]]:
        """(split, index) of each recording of a corpus whose splits have `sizes` at scale 1."""
        return ((split, index) for split, full in sizes.items() for index in range(self.count(full, minimum)))

    def random(self, name: str) -> np.random.Generator:
        """A random generator that depends only on the name."""
        return np.random.default_rng(zlib.crc32(name.encode()))

    def say(
        self, name: str, text: str, speaker: int, prosody: Prosody | None = None, level: float | None = None
    ) -> np.ndarray:
        """A recording, float32 (sample,) in [-1, 1]; `prosody` and `level` (dB) are random by default."""
        random = self.random(name)
        drawn = random_prosody(speaker, random)
        conditions = Conditions(
            silence=(round(random.uniform(0.08, 0.2), 3), round(random.uniform(0.08, 0.2), 3)),
            tilt=round(random.uniform(-0.3, 0.3), 3),
            level=round(random.uniform(-28, -20), 2) if level is None else level,
            snr=round(random.uniform(25, 40), 2),
            colour=round(random.uniform(0.0, 0.7), 3),
            seed=int(random.integers(2**31)),
        )
        voice = speaker_voice(speaker)
        samples, _ = self.render(Utterance(name, str(speaker), text, voice, prosody or drawn, conditions))
        return samples.astype(np.float32) / 32768

    def pronounce(self, word: str) -> list[str]:
        """The phones of a word spoken alone, without silence."""
        _, phones = self.render(Utterance(word, "0", word, speaker_voice(0)))
        return [phone for phone, _, _ in phones if phone != "sil"]


def write_wav(path: Path, samples: np.ndarray) -> None:
    """Write (sample,) in [-1, 1] as 16-bit audio at 16 kHz, in the format of the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file: Any = os.fsencode(path)  # soundfile only accepts text that is UTF-8
    soundfile.write(file, np.clip(samples, -1, 1), SAMPLE_RATE, subtype="PCM_16")


def append(path: Path, line: str) -> None:
    """Add a line to a text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(f"{line}\n")


def fit(samples: np.ndarray, length: int) -> np.ndarray:
    """`samples` truncated or zero-padded to `length`."""
    return np.pad(samples[:length], (0, max(length - len(samples), 0)))
