"""The splits of the embedded corpus: who says what in each, and how to get it."""

import zlib
from dataclasses import dataclass

import numpy as np
from lhotse import CutSet
from lhotse.cut import Cut

from distiller.common.files import cache_folder
from distiller.synthesis.espeak import PHONES, SAMPLE_RATE
from distiller.synthesis.sentences import sentence
from distiller.synthesis.shards import synthesise
from distiller.synthesis.speakers import random_prosody, speaker_name, speaker_voice
from distiller.synthesis.utterances import Conditions, Utterance
from upstream.errors import UserError

SEED = 1
FRAME_SHIFT, RECEPTIVE_FIELD = 320, 400  # samples, of every HuBERT-like extractor


@dataclass(frozen=True)
class Split:
    """So many utterances, spread evenly over these speakers."""

    utterances: int
    speakers: tuple[int, ...]


# 40 speakers to tell apart, 16 heard only in probe_unseen, 160 more to train on. The probe's 40 are heard in training
# too, without their names. The order counts: it numbers the splits, and no sentence occurs in two of them.
_PROBED, _UNSEEN, _OTHERS = tuple(range(40)), tuple(range(40, 56)), tuple(range(56, 216))
SPLITS = {
    "train": Split(1_000, _PROBED + _OTHERS[:60]),
    "validation": Split(60, _PROBED[:20] + _OTHERS[:10]),
    "probe_train": Split(400, _PROBED),
    "probe_seen": Split(160, _PROBED),
    "probe_unseen": Split(96, _UNSEEN),
    "pretrain": Split(10_000, _PROBED + _OTHERS),
}


def load_split(
    name: str, utterances: int | None = None, *, progress: bool = True, workers: int | None = None
) -> CutSet:
    """A split of the embedded corpus, from the user's cache or made now.

    Args:
        name: a key of SPLITS.
        utterances: take this many instead of the split's own number; more utterances extend fewer.
        progress: show a bar while synthesising, where stderr is a terminal.
        workers: processes that speak; one per processor when None.

    Raises:
        UserError: no such split, the cache cannot be written, or espeakng-loader is missing.
    """
    return synthesise(plan(name, utterances), cache_folder("synthesis") / name, progress=progress, workers=workers)


def plan(name: str, utterances: int | None = None) -> list[Utterance]:
    """The utterances of a split of SPLITS, or only its first `utterances`.

    Raises:
        UserError: no such split.
    """
    if name not in SPLITS:
        raise UserError(f"the embedded corpus has no split {name!r}; its splits are {', '.join(SPLITS)}")
    split, number = SPLITS[name], list(SPLITS).index(name)
    return [
        _random_utterance(f"{name}-{index:05d}", split.speakers[index % len(split.speakers)], number, index)
        for index in range(split.utterances if utterances is None else utterances)
    ]


def _random_utterance(name: str, speaker: int, split: int, index: int) -> Utterance:
    random = np.random.default_rng([SEED, split, index])
    text = sentence(random)
    while zlib.crc32(text.encode()) % len(SPLITS) != split:  # each sentence belongs to one split only
        text = sentence(random)
    conditions = Conditions(
        silence=(round(random.uniform(0.05, 0.25), 3), round(random.uniform(0.05, 0.25), 3)),
        tilt=round(random.uniform(-0.4, 0.4), 3),
        level=round(random.uniform(-32, -22), 1),
        snr=round(random.uniform(20, 40), 1),
        colour=round(random.uniform(0.0, 0.95), 3),
        seed=int(random.integers(2**32)),
    )
    return Utterance(
        name, speaker_name(speaker), text, speaker_voice(speaker), random_prosody(speaker, random), conditions
    )


def phone_targets(cut: Cut, frames: int) -> np.ndarray:
    """The class in PHONES at the centre of each of `frames` frames: (frame,) int64.

    Frame t sees samples 320 t to 320 t + 399, so its centre is sample 320 t + 200. Where no phone is, it is silence.
    """
    centres = (np.arange(frames) * FRAME_SHIFT + RECEPTIVE_FIELD / 2) / SAMPLE_RATE  # (frame,) seconds
    centres += cut.start  # an alignment counts from the recording's start
    targets = np.zeros(frames, dtype=np.int64)
    for supervision in cut.supervisions:
        for phone in (supervision.alignment or {}).get("phone", []):
            targets[(centres >= phone.start) & (centres < phone.end)] = PHONES.index(phone.symbol)
    return targets


def speaker_of(cut: Cut) -> str:
    """Who speaks in a cut of the embedded corpus."""
    speaker = cut.supervisions[0].speaker
    assert speaker is not None
    return speaker
