"""The splits of the synthetic corpus: who says what in each, and how to load them."""

import zlib
from dataclasses import dataclass

import numpy as np
from lhotse.cut import Cut
from lhotse.cut.data import DataCut

from distiller.common.files import cache_folder
from distiller.synthesis.espeak import PHONES
from distiller.synthesis.sentences import sentence
from distiller.synthesis.shards import synthesise
from distiller.synthesis.speakers import random_prosody, speaker_name, speaker_voice
from distiller.synthesis.utterances import Conditions, Utterance
from upstream.config import SAMPLE_RATE
from upstream.errors import one_of, require

SEED = 1
FRAME_SHIFT, RECEPTIVE_FIELD = 320, 400  # samples, of any extractor like HuBERT's


@dataclass(frozen=True)
class Split:
    """A number of utterances, spread evenly over these speakers."""

    utterances: int
    speakers: tuple[int, ...]


# 40 speakers to identify, 16 that only occur in probe_unseen, 60 more for training. The probe's 40 also occur in
# training, without their names. The order matters: it numbers the splits, and no sentence occurs in two of them.
_PROBED, _UNSEEN, _OTHERS = tuple(range(40)), tuple(range(40, 56)), tuple(range(56, 116))
SPLITS = {
    "train": Split(1_000, _PROBED + _OTHERS),
    "validation": Split(60, _PROBED[:20] + _OTHERS[:10]),
    "probe_train": Split(400, _PROBED),
    "probe_seen": Split(160, _PROBED),
    "probe_unseen": Split(96, _UNSEEN),
}
SHARES = 6  # all sentences are divided into this many sets, one per split; the last one's split no longer exists


def load_split(name: str, utterances: int | None = None) -> list[DataCut]:
    """A split of the synthetic corpus, from the user's cache or made now.

    Args:
        name: a key of SPLITS.
        utterances: instead of the split's number; a larger number extends a smaller one.

    Raises:
        UserError: no such split, the cache cannot be written, or espeakng-loader is missing.
    """
    return synthesise(plan(name, utterances), cache_folder("synthesis") / name)


def plan(name: str, utterances: int | None = None) -> list[Utterance]:
    """The utterances of a split, or only its first `utterances`.

    Raises:
        UserError: no such split.
    """
    require(name in SPLITS, "split", name, one_of(name, SPLITS))
    split, number = SPLITS[name], list(SPLITS).index(name)
    return [
        _random_utterance(f"{name}-{index:05d}", split.speakers[index % len(split.speakers)], number, index)
        for index in range(split.utterances if utterances is None else utterances)
    ]


def _random_utterance(name: str, speaker: int, split: int, index: int) -> Utterance:
    random = np.random.default_rng([SEED, split, index])
    text = sentence(random)
    while zlib.crc32(text.encode()) % SHARES != split:  # each sentence belongs to one split only
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

    Frame t sees samples 320 t to 320 t + 399, so its centre is sample 320 t + 200. Frames without a phone are silence.
    """
    centres = (np.arange(frames) * FRAME_SHIFT + RECEPTIVE_FIELD / 2) / SAMPLE_RATE  # (frame,) seconds
    centres += cut.start  # alignments are relative to the start of the recording
    targets = np.zeros(frames, dtype=np.int64)
    for supervision in cut.supervisions:
        for phone in (supervision.alignment or {}).get("phone", []):
            targets[(centres >= phone.start) & (centres < phone.end)] = PHONES.index(phone.symbol)
    return targets


def speaker_of(cut: Cut) -> str:
    """The speaker of a cut of the synthetic corpus."""
    speaker = cut.supervisions[0].speaker
    assert speaker is not None
    return speaker
