"""The student's input for a batch: which effects each utterance gets, and how strong they are, drawn at random.

An utterance's effects follow from (seed, epoch, its id), and the voices mixed into it from its batch: they are the same
for any number of workers, and a resumed run gets the same audio as an uninterrupted one.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from lhotse.cut.data import DataCut

from distiller.audio.batch import Batch
from distiller.audio.decoding import Decoder, Undecodable
from distiller.augmentation import effects
from distiller.augmentation.config import AUGMENTED, AugmentConfig
from distiller.augmentation.effects import Samples

SOUNDS = Decoder(min_samples=1)  # noises and impulse responses may be short
NOISE_SECONDS = 10.0  # longer recordings of noise are used in parts
SHORTEST_PART = 5  # of another utterance: a fifth of the longest
ATTEMPTS = 20  # recordings tried in place of one that cannot be decoded


class Augmenter:
    """Degrades a batch.

    Args:
        noises, responses: recordings of noise, and of impulse responses; without any they are synthesised.
    """

    def __init__(
        self, config: AugmentConfig, seed: int, noises: Sequence[DataCut] = (), responses: Sequence[DataCut] = ()
    ) -> None:
        self.config, self.seed, self.noises, self.responses = config, seed, noises, responses

    def __call__(self, batch: Batch) -> Batch:
        """The batch with the student's input in `degraded`; with teacher=augmented, the teacher gets it too."""
        clean = [row[:length].numpy() for row, length in zip(batch.waveforms, batch.lengths.tolist(), strict=True)]
        degraded = torch.zeros_like(batch.waveforms)
        for index, (row, speech) in enumerate(zip(degraded, clean, strict=True)):
            number = int.from_bytes(hashlib.sha256(batch.ids[index].encode()).digest()[:8])
            random = np.random.default_rng([self.seed, batch.position[0], number])
            others = clean[:index] + clean[index + 1 :]
            row[: len(speech)] = torch.from_numpy(self.degraded(speech, others, random))
        if self.config.teacher == AUGMENTED:
            return replace(batch, waveforms=degraded)
        return replace(batch, degraded=degraded)

    def degraded(self, speech: Samples, others: Sequence[Samples], random: np.random.Generator) -> Samples:
        """One utterance after randomly drawn effects.

        Args:
            others: the other utterances of the batch.
        """
        config = self.config
        voices, noise, room, band, telephone, gain = random.spawn(6)  # none depends on what the others draw
        if others and voices.random() < config.speech.probability:
            speech = self._with_voices(speech, others, voices)
        if noise.random() < config.noise.probability:
            added = effects.at_snr(self._noise(len(speech), noise), speech, between(noise, config.noise.snr))
            speech = speech + np.resize(added, len(speech))
        if room.random() < config.reverberation.probability:
            speech = effects.reverberated(speech, self._response(room))
        if band.random() < config.band.probability:
            lowest, highest = (between(band, limits) for limits in (config.band.lowest, config.band.highest))
            speech = effects.band_limited(speech, lowest, highest)
        if telephone.random() < config.telephone.probability:
            speech = effects.telephoned(speech, str(telephone.choice(config.telephone.codecs)))
        if gain.random() < config.gain.probability:
            speech = effects.amplified(speech, between(gain, config.gain.decibels), config.gain.clip)
        return speech

    def _with_voices(self, speech: Samples, others: Sequence[Samples], random: np.random.Generator) -> Samples:
        """Parts of other utterances at random places; the level of each is that of its whole utterance."""
        result, half = speech.copy(), max(1, len(speech) // 2)
        for _ in range(random.integers(1, self.config.speech.voices + 1)):
            other = others[int(random.integers(len(others)))]
            count = min(len(other), int(random.integers(half // SHORTEST_PART, half + 1)))
            first, start = random.integers(len(other) - count + 1), random.integers(len(speech) - count + 1)
            voice = effects.at_snr(other, speech, between(random, self.config.speech.snr))
            result[start : start + count] += voice[first : first + count]
        return result

    def _noise(self, samples: int, random: np.random.Generator) -> Samples:
        """`samples` of synthesised noise, or a recording rotated to a random start, to be repeated if it is shorter."""
        recorded = _drawn(self.noises, random)
        if recorded is None:
            return effects.coloured_noise(random, samples, between(random, self.config.noise.colour))
        return np.roll(recorded, -random.integers(len(recorded)))

    def _response(self, random: np.random.Generator) -> Samples:
        recorded = _drawn(self.responses, random)
        if recorded is not None:
            return effects.from_direct_sound(recorded)
        config = self.config.reverberation
        return effects.decaying_response(random, between(random, config.seconds), between(random, config.direct))


def open_augmenter(
    config: AugmentConfig, seed: int, open_audio: Callable[[str, float, Decoder], list[DataCut]]
) -> Augmenter | None:
    """The augmenter of a recipe, with the recordings that it names; None if no effect has a probability.

    Args:
        open_audio: lists a corpus by its path, the longest cut in seconds, and a decoder.
    """
    if not config.enabled:
        return None
    noise, reverberation = (
        open_audio(effect.path, longest, SOUNDS) if effect.path is not None and effect.probability else []
        for effect, longest in ((config.noise, NOISE_SECONDS), (config.reverberation, math.inf))
    )
    return Augmenter(config, seed, noise, reverberation)


def between(random: np.random.Generator, limits: Sequence[float]) -> float:
    """A number drawn uniformly from a range of the recipe."""
    low, high = limits
    return float(random.uniform(low, high))


def _drawn(cuts: Sequence[DataCut], random: np.random.Generator) -> Samples | None:
    """The samples of a random cut; None if there are no cuts, or if none of those tried can be decoded."""
    for _ in range(ATTEMPTS if cuts else 0):
        try:
            return SOUNDS.decode(cuts[int(random.integers(len(cuts)))]).numpy()
        except Undecodable:
            continue
    return None
