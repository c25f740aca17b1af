# ruff: noqa: RUF001  (IPA is made of letters that look like others)
"""Synthetic speech with phone labels: text and a voice in, 16 kHz samples and timed phones out.

The voice is libespeak-ng's, from the wheel `espeakng-loader`. It is GPL-3 and has global state, so it lives in
processes of its own (`worker.py`); this side starts them, resamples, and names the phones. The same request gives the
same bytes, whatever was said before and in whichever process.
"""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from types import TracebackType

import numpy as np
from scipy.signal import resample_poly

from upstream.errors import UserError

SAMPLE_RATE = 16_000
LIBRARY_RATE = 22_050

ACCENTS = (
    "en",
    "en-029",
    "en-GB-scotland",
    "en-GB-x-gbclan",
    "en-GB-x-gbcwmd",
    "en-GB-x-rp",
    "en-US",
    "en-US-nyc",
)

SILENCE = "sil"
# The IPA that the library prints for its English accents, gathered into the classes of ARPAbet plus schwa. Accents
# realise a vowel differently (West Midlands: "two" with [əu]); near ones share a class, so that a label stays
# predictable from the sound.
_IPA = {
    "IY": "i iː ei",
    "IH": "ɪ ᵻ",
    "EH": "ɛ e",
    "AE": "æ a",
    "AA": "ɑ ɑː aː a: aa",
    "AO": "ɔ ɔː ɒ o",
    "AH": "ʌ ɐ",
    "UH": "ʊ",
    "UW": "u uː ʉ ʉː əu",
    "ER": "ɜ ɜː ɚ əɪ",
    "AX": "ə",
    "EY": "eɪ eː",
    "AY": "aɪ",
    "OY": "ɔɪ oɪ",
    "OW": "oʊ əʊ oː ʌʊ",
    "AW": "aʊ æʊ ʌʉ",
    "P": "p",
    "B": "b",
    "T": "t t̪ ʔ",
    "D": "d ɾ",
    "K": "k",
    "G": "ɡ g",
    "CH": "tʃ",
    "JH": "dʒ",
    "F": "f",
    "V": "v",
    "TH": "θ",
    "DH": "ð",
    "S": "s",
    "Z": "z",
    "SH": "ʃ",
    "ZH": "ʒ",
    "HH": "h",
    "M": "m",
    "N": "n",
    "NG": "ŋ",
    "L": "l",
    "R": "ɹ r",
    "W": "w ʍ",
    "Y": "j",
}
PHONES = (SILENCE, *_IPA)  # 41 classes; index 0 is silence
_UNITS = {ipa: phone for phone, spellings in _IPA.items() for ipa in spellings.split()}
_UNIT = re.compile("|".join(sorted(map(re.escape, _UNITS), key=len, reverse=True)))
_MARKS = re.compile("[ˈˌːʲ̩]")
# A sound without a name is a pause (80 ms or more at up to 240 words per minute) or a link of two vowels (up to 55 ms).
_LINK = 0.07  # seconds; what is shorter belongs to the phone before it


@dataclass(frozen=True)
class Voice:
    """A speaker: an accent of the library's and the knobs of its formant synthesiser.

    Args:
        accent: one of ACCENTS.
        pitch: the lowest and the highest fundamental frequency of neutral speech, in Hz.
        formants: for F1..F8 the scale in percent of (frequency, strength, bandwidth); F0 is the voicing bar's.
        flutter, roughness: slow and fast irregularity of the fundamental, 0 is none.
        tone: breakpoints (Hz, amplitude 0..255) of the voice's spectral envelope.
        voicing: strength of the periodic source, percent.
        consonants: strength of frication in (voiceless, voiced) consonants, percent.
        breath: strength of aspiration noise in F1..F8; empty for none.
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
        if self.accent not in ACCENTS:
            raise UserError(f"there is no accent {self.accent!r}; the accents are {', '.join(ACCENTS)}")

    def definition(self) -> str:
        """The lines of an espeak-ng voice file that follow the accent's own."""
        lines = [
            f"pitch {_row(self.pitch)}",
            f"flutter {self.flutter}",
            f"roughness {self.roughness}",
            f"tone {' '.join(_row(point) for point in self.tone)}",
            f"voicing {self.voicing}",
            f"consonants {_row(self.consonants)}",
            f"intonation {self.intonation}",
        ]
        lines += [f"formant {number} {_row(scales)}" for number, scales in enumerate(self.formants, start=1)]
        if self.breath:
            lines.append(f"breath {_row(self.breath)}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Prosody:
    """How a text is said: words per minute (80 to 450), and pitch and its range, each 0 to 100 with 50 neutral."""

    rate: int = 175
    pitch: int = 50
    range: int = 50

    def __post_init__(self) -> None:
        for name, low, high in (("rate", 80, 450), ("pitch", 0, 100), ("range", 0, 100)):
            if not low <= getattr(self, name) <= high:
                raise UserError(f"the prosody's {name} is {getattr(self, name)}, but must be from {low} to {high}")


Phone = tuple[str, float, float]  # (one of PHONES, start, end) in seconds


class Synthesizer:
    """A process that speaks. A context manager; one thread at a time may use it.

    Raises:
        UserError: the package espeakng-loader is missing.
    """

    def __init__(self) -> None:
        library, data = _library()
        worker = Path(__file__).with_name("worker.py")
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(worker), library, data], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self) -> "Synthesizer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.process.kill()  # it holds nothing that is worth an orderly end
        self.process.communicate()

    def speak(self, text: str, voice: Voice, prosody: Prosody | None = None) -> tuple[np.ndarray, list[Phone]]:
        """Say a text.

        Returns:
            samples: (sample,) int16 at 16 kHz.
            phones: (symbol, start, end) in seconds, gapless from the first sample to the last.

        Raises:
            UserError: the text has no speech in it, or a sound outside PHONES; the process was killed.
            RuntimeError: the library failed.
        """
        prosody = prosody or Prosody()
        request = {"text": text, "accent": voice.accent, "voice": voice.definition(), **vars(prosody)}
        raw, starts = self._ask(request)
        phones = _intervals(starts, raw.size)
        if all(symbol == SILENCE for symbol, *_ in phones):
            raise UserError(f"the text {text!r} has nothing to say in it")
        common = gcd(SAMPLE_RATE, LIBRARY_RATE)
        resampled = resample_poly(raw.astype(np.float64), SAMPLE_RATE // common, LIBRARY_RATE // common)
        samples = np.clip(np.rint(resampled), -32768, 32767).astype(np.int16)  # (sample,)
        return samples, phones

    def _ask(self, request: dict) -> tuple[np.ndarray, list[tuple[str, int]]]:
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None  # both are pipes
        assert stdout is not None
        try:
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            pass  # the worker is gone; the empty answer below says so
        line = stdout.readline()
        if not line:
            status = self.process.wait()
            if status < 0:
                raise UserError(
                    f"the speech process was ended by signal {-status}, perhaps for want of memory; "
                    "run the same command again to continue"
                )
            raise RuntimeError(f"the speech process ended with status {status}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        raw = np.frombuffer(stdout.read(2 * answer["samples"]), dtype=np.int16)  # (sample,) at LIBRARY_RATE
        return raw, [(ipa, start) for ipa, start in answer["phones"]]


def speak(text: str, voice: Voice, prosody: Prosody | None = None) -> tuple[np.ndarray, list[Phone]]:
    """`Synthesizer.speak` in a process for this one text; keep a Synthesizer to say many."""
    with Synthesizer() as synthesizer:
        return synthesizer.speak(text, voice, prosody)


def phones_of(ipa: str) -> list[str]:
    """The phone classes of one of the library's phonemes: "ˈɑːɹ" is AA R, what has no name is SILENCE.

    Raises:
        UserError: a sound that is in none of the classes.
    """
    if _MARKS.sub("", _UNIT.sub("", ipa)):
        raise UserError(f"the sound {ipa!r} is none of the {len(PHONES)} phone classes")
    return [_UNITS[unit] for unit in _UNIT.findall(ipa)] or [SILENCE]


def _intervals(starts: list[tuple[str, int]], count: int) -> list[Phone]:
    """Phone onsets, in samples of the library's, to gapless intervals in seconds; a compound is shared out evenly."""
    onsets = [(SILENCE, 0.0)]
    for (ipa, start), end in zip(starts, [start for _, start in starts[1:]] + [count], strict=True):
        symbols = phones_of(ipa)
        length = (end - start) / len(symbols) / LIBRARY_RATE
        onsets += [(symbol, start / LIBRARY_RATE + part * length) for part, symbol in enumerate(symbols)]
    total = count / LIBRARY_RATE
    *inner, last = joined(onsets, total)
    spoken = [phone for phone in inner if not (phone[0] == SILENCE and phone[1] > 0 and phone[2] - phone[1] < _LINK)]
    return joined([(symbol, start) for symbol, start, _ in [*spoken, last]], total)


def joined(onsets: list[tuple[str, float]], total: float) -> list[Phone]:
    """Each phone up to the next one's onset, the last up to `total` seconds; adjacent silences are one."""
    intervals: list[Phone] = []
    ends = [start for _, start in onsets[1:]] + [total]
    for (symbol, start), end in zip(onsets, ends, strict=True):
        if intervals and intervals[-1][0] == symbol == SILENCE:
            intervals[-1] = (symbol, intervals[-1][1], round(end, 4))
        elif round(end, 4) > round(start, 4):
            intervals.append((symbol, round(start, 4), round(end, 4)))
    return intervals


def _library() -> tuple[str, str]:
    """Where the library and its data are."""
    try:
        import espeakng_loader  # only names the paths: the library itself is loaded by the worker alone
    except ImportError:
        raise UserError(
            "the embedded corpus needs the package espeakng-loader, which is not installed: `uv sync --group synthesis`"
        ) from None
    return espeakng_loader.get_library_path(), espeakng_loader.get_data_path()


def _row(numbers: tuple[int, ...]) -> str:
    return " ".join(map(str, numbers))
