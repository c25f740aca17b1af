"""The embedded corpus: synthetic speech made on the spot, with speaker and phone labels.

`load_split` gives a split of it as Lhotse cuts, from the user's cache or made now; `phone_targets` gives a cut's labels
per frame. `synthesise` makes a corpus of any list of Utterances, and `Synthesizer.speak` says a single text.

The voice is libespeak-ng (GPL-3), which runs in processes of its own (`worker.py`) and is never loaded into this one.
"""

from distiller.synthesis.espeak import ACCENTS, PHONES, SAMPLE_RATE, SILENCE, Prosody, Synthesizer, Voice, speak
from distiller.synthesis.shards import synthesise
from distiller.synthesis.speakers import speaker_name, speaker_voice
from distiller.synthesis.splits import SPLITS, load_split, phone_targets, plan, speaker_of
from distiller.synthesis.utterances import Conditions, Utterance, render

__all__ = [
    "ACCENTS",
    "PHONES",
    "SAMPLE_RATE",
    "SILENCE",
    "SPLITS",
    "Conditions",
    "Prosody",
    "Synthesizer",
    "Utterance",
    "Voice",
    "load_split",
    "phone_targets",
    "plan",
    "render",
    "speak",
    "speaker_name",
    "speaker_of",
    "speaker_voice",
    "synthesise",
]
