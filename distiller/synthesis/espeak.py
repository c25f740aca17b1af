# ruff: noqa: RUF001  (IPA is made of letters that look like others)
"""Synthetic speech with phone labels: text and a voice in, 16 kHz samples and timed phones out.

The synthesiser is libespeak-ng, from the wheel `espeakng-loader`. It is GPL-3 and has global state, so it runs in
separate processes (`worker.py`); this side starts them, resamples, and names the phones. The same request gives the
same bytes in any process, whatever was said before.
"""

import json
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from threading import Lock

import numpy as np
from scipy.signal import resample_poly

from upstream.config import SAMPLE_RATE
from upstream.errors import UserError, one_of, require

LIBRARY_RATE = 22_050

ACCENTS = (
    "en", "en-029", "en-GB-scotland", "en-GB-x-gbclan", "en-GB-x-gbcwmd", "en-GB-x-rp", "en-US", "en-US-nyc",
)  # fmt: skip

SILENCE = "sil"
# The IPA that the library prints for its English accents, in the classes of ARPAbet plus schwa. Accents realise a vowel
# differently (West Midlands: "two" with [əu]); similar sounds share a class, so that a label can be predicted from the
# sound.
_IPA = {
    "IY": "i iː ei", "IH": "ɪ ᵻ", "EH": "ɛ e", "AE": "æ a", "AA": "ɑ ɑː aː a: aa", "AO": "ɔ ɔː ɒ o", "AH": "ʌ ɐ",
    "UH": "ʊ", "UW": "u uː ʉ ʉː əu", "ER": "ɜ ɜː ɚ əɪ", "AX": "ə",
    "EY": "eɪ eː", "AY": "aɪ", "OY": "ɔɪ oɪ", "OW": "oʊ əʊ oː ʌʊ", "AW": "aʊ æʊ ʌʉ",
    "P": "p", "B": "b", "T": "t t̪ ʔ", "D": "d ɾ", "K": "k", "G": "ɡ g", "CH": "tʃ", "JH": "dʒ",
    "F": "f", "V": "v", "TH": "θ", "DH": "ð", "S": "s", "Z": "z", "SH": "ʃ", "ZH": "ʒ", "HH": "h",
    "M": "m", "N": "n", "NG": "ŋ", "L": "l", "R": "ɹ r", "W": "w ʍ", "Y": "j",
}  # fmt: skip
PHONES = (SILENCE, *_IPA)  # 41 classes; index 0 is silence
_UNITS = {ipa: phone for phone, spellings in _IPA.items() for ipa in spellings.split()}
_UNIT = re.compile("|".join(sorted(map(re.escape, _UNITS), key=len, reverse=True)))
_MARKS = re.compile("[ˈˌːʲ̩]")
# An unnamed sound is a pause (80 ms or more at up to 240 words per minute) or a link between two vowels (up to 55 ms).
_LINK = 0.07  # seconds; a shorter unnamed sound belongs to the preceding phone


@dataclass(frozen=True)
class Voice:
    """A speaker: one of the library's accents and the settings of its formant synthesiser.

    Args:
        accent: one of ACCENTS.
        pitch: the lowest and the highest fundamental frequency of neutral speech, in Hz.
        formants: scales in percent of (frequency, strength, bandwidth) for F1 to F8; F0 is the voicing bar.
        flutter, roughness: slow and fast irregularity of the fundamental; 0 is none.
        tone: breakpoints (Hz, amplitude 0 to 255) of the spectral envelope.
        voicing: strength of the periodic source, in percent.
        consonants: strength of frication in (voiceless, voiced) consonants, in percent.
        breath: strength of aspiration noise in F1 to F8; empty for none.
        intonation: one of the library's four pitch contours.
    """

    accent: str = "en-US"
    pitch: tuple[int, int] = (82, 118)
    formants: tuple[tuple[int, int, int], ...] = ()
    flutter: int = 2
    roughness: int = 2
    tone: tuple[tuple[int, int], ...] = ((600, 170), (1200, 135), (2000, 110))
    voicing: int = 100
    consonants: tuple[int, int] = (100, 100)
    breath: tuple[int, ...] = ()
    intonation: int = 1

    def __post_init__(self) -> None:
        require(self.accent in ACCENTS, "accent", self.accent, one_of(self.accent, ACCENTS))

    def definition(self) -> str:
        """The lines of an espeak-ng voice file that follow those of the accent."""
        names = ("pitch", "flutter", "roughness", "tone", "voicing", "consonants", "intonation")
        settings = {name: getattr(self, name) for name in names}
        settings |= {f"formant {number}": scales for number, scales in enumerate(self.formants, start=1)}
        settings |= {"breath": self.breath} if self.breath else {}
        return "\n".join(f"{name} {' '.join(map(str, np.ravel(values)))}" for name, values in settings.items())


@dataclass(frozen=True)
class Prosody:
    """How a text is spoken: words per minute (80 to 450), pitch and pitch range (0 to 100, 50 is neutral)."""

    rate: int = 175
    pitch: int = 50
    range: int = 50

    def __post_init__(self) -> None:
        for name, low, high in (("rate", 80, 450), ("pitch", 0, 100), ("range", 0, 100)):
            require(low <= getattr(self, name) <= high, name, getattr(self, name), f"a number from {low} to {high}")


Phone = tuple[str, float, float]  # (one of PHONES, start, end) in seconds


class Synthesizer:
    """A process that speaks; a context manager. Threads take turns.

    Raises:
        UserError: the package espeakng-loader is missing.
    """

    def __init__(self) -> None:
        self.turn = Lock()
        library, data = _library()
        worker = Path(__file__).with_name("worker.py")
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(worker), library, data], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self) -> "Synthesizer":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()  # it has nothing to save
        self.process.communicate()

    def speak(self, text: str, voice: Voice, prosody: Prosody | None = None) -> tuple[np.ndarray, list[Phone]]:
        """Speak a text.

        Returns:
            samples: (sample,) int16 at 16 kHz.
            phones: (symbol, start, end) in seconds, without gaps from the first sample to the last.

        Raises:
            UserError: the text contains no speech, or a sound outside PHONES; the process was killed.
            RuntimeError: the library failed.
        """
        raw, starts = self._ask(text, voice.accent, voice.definition(), prosody or Prosody())
        phones = _intervals(starts, raw.size)
        if all(symbol == SILENCE for symbol, *_ in phones):
            raise UserError(f"the text {text!r} contains no speech")
        return _resampled(raw), phones

    def say(self, text: str, accent: str, voice: str, prosody: Prosody) -> np.ndarray:
        """As `speak`, for any language and without phones: (sample,) int16 at 16 kHz, none if there is no speech.

        Args:
            accent: the name of one of the library's language files.
            voice: lines of a voice file, as `Voice.definition`.
        """
        raw, _ = self._ask(text, accent, voice, prosody)
        return _resampled(raw) if raw.size else np.zeros(0, np.int16)

    def _ask(self, text: str, accent: str, voice: str, prosody: Prosody) -> tuple[np.ndarray, list[tuple[str, int]]]:
        request = {"text": text, "accent": accent, "voice": voice, **vars(prosody)}
        with self.turn:
            return self._answer(request)

    def _answer(self, request: dict) -> tuple[np.ndarray, list[tuple[str, int]]]:
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None  # both are pipes
        assert stdout is not None
        with suppress(BrokenPipeError):  # the worker has ended; the empty answer below shows it
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
        line = stdout.readline()
        if not line:
            status = self.process.wait()
            if status < 0:
                raise UserError(
                    f"the speech process was killed by signal {-status}, perhaps because memory ran out; run the same "
                    "command again to continue"
                )
            raise RuntimeError(f"the speech process ended with status {status}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        raw = np.frombuffer(stdout.read(2 * answer["samples"]), dtype=np.int16)  # (sample,) at LIBRARY_RATE
        return raw, [(ipa, start) for ipa, start in answer["phones"]]


def _resampled(raw: np.ndarray) -> np.ndarray:
    """(sample,) at LIBRARY_RATE to (sample,) int16 at 16 kHz."""
    resampled = resample_poly(raw.astype(np.float64), SAMPLE_RATE, LIBRARY_RATE)
    return np.clip(np.rint(resampled), -32768, 32767).astype(np.int16)


def phones_of(ipa: str) -> list[str]:
    """The phone classes of one of the library's phonemes: AA and R for "ˈɑːɹ", SILENCE for an unnamed one.

    Raises:
        UserError: a sound outside the classes.
    """
    if _MARKS.sub("", _UNIT.sub("", ipa)):
        raise UserError(f"the sound {ipa!r} is not in any of the {len(PHONES)} phone classes")
    return [_UNITS[unit] for unit in _UNIT.findall(ipa)] or [SILENCE]


def _intervals(starts: list[tuple[str, int]], count: int) -> list[Phone]:
    """Phone onsets in samples at LIBRARY_RATE to intervals in seconds without gaps; compounds are divided evenly."""
    onsets = [(SILENCE, 0.0)]
    for (ipa, start), (_, end) in pairwise([*starts, ("", count)]):
        symbols = phones_of(ipa)
        length = (end - start) / len(symbols) / LIBRARY_RATE
        onsets += [(symbol, start / LIBRARY_RATE + part * length) for part, symbol in enumerate(symbols)]
    total = count / LIBRARY_RATE
    *inner, last = joined(onsets, total)
    spoken = [phone for phone in inner if not (phone[0] == SILENCE and phone[1] > 0 and phone[2] - phone[1] < _LINK)]
    return joined([(symbol, start) for symbol, start, _ in [*spoken, last]], total)


def joined(onsets: list[tuple[str, float]], total: float) -> list[Phone]:
    """Each phone up to the onset of the next, the last up to `total` seconds; adjacent silences are merged."""
    intervals: list[Phone] = []
    for (symbol, start), (_, end) in pairwise([*onsets, (SILENCE, total)]):
        if intervals and intervals[-1][0] == symbol == SILENCE:
            intervals[-1] = (symbol, intervals[-1][1], round(end, 4))
        elif round(end, 4) > round(start, 4):
            intervals.append((symbol, round(start, 4), round(end, 4)))
    return intervals


def _library() -> tuple[str, str]:
    """Paths of the library and its data."""
    try:
        import espeakng_loader  # only names the paths; the library itself is loaded by the worker alone
    except ImportError:
        raise UserError(
            "synthetic speech needs the package espeakng-loader, which is not installed: `uv sync --group synthesis`"
        ) from None
    return espeakng_loader.get_library_path(), espeakng_loader.get_data_path()
