"""Who says what in the synthetic corpus: splits, sentences, voices."""

import re
from collections import Counter

import numpy as np
import pytest

from distiller.synthesis import splits
from distiller.synthesis.espeak import Prosody, Synthesizer, Voice
from distiller.synthesis.sentences import MAX_WORDS, MIN_WORDS
from distiller.synthesis.speakers import speaker_voice
from distiller.synthesis.splits import SPLITS, plan
from upstream.config import SAMPLE_RATE


@pytest.fixture(scope="module")
def synthesizer():
    with Synthesizer() as synthesizer:
        yield synthesizer


def test_splits_share_no_sentence_and_unseen_speakers_occur_nowhere_else():
    plans = {name: plan(name, min(split.utterances, 1_000)) for name, split in SPLITS.items()}
    texts = Counter(text for utterances in plans.values() for text in {utterance.text for utterance in utterances})
    assert set(texts.values()) == {1}
    speakers = {name: {utterance.speaker for utterance in utterances} for name, utterances in plans.items()}
    assert len(speakers["probe_train"]) == 40
    assert speakers["probe_seen"] == speakers["probe_train"]
    assert len(speakers["probe_unseen"]) == 16
    for name in plans.keys() - {"probe_unseen"}:
        assert speakers[name].isdisjoint(speakers["probe_unseen"])
    assert {name: len(utterances) for name, utterances in plans.items()} == {
        "train": 1000,
        "validation": 60,
        "probe_train": 400,
        "probe_seen": 160,
        "probe_unseen": 96,
    }
    for name, each in (("probe_train", 10), ("probe_seen", 4), ("probe_unseen", 6)):
        assert set(Counter(utterance.speaker for utterance in plans[name]).values()) == {each}
    for utterance in plans["train"]:
        assert MIN_WORDS <= len(re.findall(r"\w+", utterance.text)) <= MAX_WORDS


def test_a_sentence_that_two_splits_might_draw_goes_to_one(monkeypatch):
    monkeypatch.setattr(splits, "sentence", lambda random: f"Sentence {random.integers(60)}.")
    texts = [{utterance.text for utterance in plan(name, 60)} for name in SPLITS]
    assert all(texts)
    assert sum(map(len, texts)) == len(set().union(*texts))


def test_every_speaker_has_another_voice(synthesizer):
    numbers = sorted({number for split in SPLITS.values() for number in split.speakers})
    said = {synthesizer.speak("One.", speaker_voice(number))[0].tobytes() for number in numbers}
    assert len(said) == len(numbers) == 116


def test_prosody_does_what_it_says(synthesizer):
    slow, _ = synthesizer.speak("We will wait here.", Voice(), Prosody(rate=120))
    fast, _ = synthesizer.speak("We will wait here.", Voice(), Prosody(rate=240))
    assert slow.size > 1.5 * fast.size

    def fundamental(samples):
        spectrum = np.abs(np.fft.rfft(samples.astype(float), n=2 * samples.size)) ** 2
        autocorrelation = np.fft.irfft(spectrum)
        return SAMPLE_RATE / (40 + np.argmax(autocorrelation[40:250]))  # 64 to 400 Hz

    low, _ = synthesizer.speak("Aaah.", Voice(pitch=(90, 100)))
    high, _ = synthesizer.speak("Aaah.", Voice(pitch=(180, 200)))
    assert fundamental(high) > 1.5 * fundamental(low)
