"""The miniature corpora, one function per corpus, each in the exact layout that s3prl's task reads.

Every function writes below `root`, which is renamed to `home` when all corpora are complete; absolute paths inside
files are therefore below `home`.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from distiller.common.files import write_csv
from distiller.synthesis.espeak import SAMPLE_RATE, Prosody
from distiller.synthesis.sentences import LEXICON, sentence
from downstream_recipes.miniature.content import COMMANDS, KEYWORDS, SLOTS, UNKNOWN_WORDS, request
from downstream_recipes.miniature.recordings import Studio, append, fit, write_wav
from downstream_recipes.tasks.preparation import VOWELS

# Speakers of the synthetic corpus by number; parts that must not share a speaker use different ranges.
TRAIN_SPEAKERS, DEV_SPEAKERS, TEST_SPEAKERS = range(300, 316), range(316, 320), range(320, 328)
SPLIT_SPEAKERS = {"train": TRAIN_SPEAKERS, "dev": DEV_SPEAKERS, "valid": DEV_SPEAKERS, "test": TEST_SPEAKERS}


def speakers_of(split: str) -> range:
    """The speakers of train-clean-100, dev_1000, test: the first word decides."""
    return SPLIT_SPEAKERS[re.split("[-_]", split)[0]]


def plain_words(text: str) -> list[str]:
    """Lower-case words without punctuation, apostrophes kept."""
    return re.sub(r"[^a-z' ]", "", text.lower()).split()


def librispeech(studio: Studio, root: Path, home: Path) -> None:
    """PR, ASR: SPLIT/SPEAKER/CHAPTER/*.flac with *.trans.txt, and a lexicon of every word."""
    for split, index in studio.recordings({"train-clean-100": 240, "dev-clean": 24, "test-clean": 48}, minimum=4):
        speaker = speakers_of(split)[index % len(speakers_of(split))]
        name = f"{speaker}-1-{index:04d}"
        text = sentence(studio.random(f"libri {name}"))
        folder = root / split / str(speaker) / "1"
        write_wav(folder / f"{name}.flac", studio.say(f"libri {name}", text, speaker))
        append(folder / f"{speaker}-1.trans.txt", f"{name} {' '.join(plain_words(text)).upper()}")


def lexicon(studio: Studio, root: Path, home: Path) -> None:
    """PR: every word that `librispeech` uses, as the synthesiser says it, with stress on every vowel but schwa."""

    def arpabet(phone: str) -> str:
        return "AH0" if phone == "AX" else f"{phone}1" if phone in VOWELS else phone

    for word in LEXICON:
        append(root / "lexicon.txt", f"{word.upper()} {' '.join(map(arpabet, studio.pronounce(word)))}")


def _keyword_speakers() -> Iterator[tuple[str, str]]:
    """Names, and the split that Speech Commands' hash assigns them to."""
    for name in (f"{number:08x}" for number in count()):
        percentage = int(hashlib.sha1(name.encode()).hexdigest(), 16) % 2**27 * 100 / (2**27 - 1)
        yield name, "valid" if percentage < 10 else "test" if percentage < 20 else "train"


def speech_commands(studio: Studio, root: Path, home: Path) -> None:
    """KS: WORD/SPEAKER_nohash_N.wav of one second, and noises."""
    speakers = {"train": TRAIN_SPEAKERS[: studio.count(16, 2)], "valid": DEV_SPEAKERS[: studio.count(4, 1)]}
    names = _keyword_speakers()
    for split, numbers in speakers.items():
        for speaker in numbers:
            name = next(name for name, of in names if of == split)
            for word in KEYWORDS + UNKNOWN_WORDS:
                samples = studio.say(f"ks {name} {word}", word, speaker)
                write_wav(root / word / f"{name}_nohash_0.wav", fit(samples, SAMPLE_RATE))
    for index in range(4):
        write_wav(root / "_background_noise_" / f"noise{index}.wav", _noise(studio, f"ks noise {index}", 3))


def speech_commands_test(studio: Studio, root: Path, home: Path) -> None:
    """KS: a folder for each of the twelve classes."""
    for speaker in TEST_SPEAKERS[: studio.count(8, 1)]:
        for word in KEYWORDS + UNKNOWN_WORDS[:2]:
            folder = word if word in KEYWORDS else "_unknown_"
            samples = studio.say(f"ks test {speaker} {word}", word, speaker)
            write_wav(root / folder / f"{speaker}_{word}.wav", fit(samples, SAMPLE_RATE))
        write_wav(root / "_silence_" / f"{speaker}.wav", _noise(studio, f"ks silence {speaker}", 1))


def _noise(studio: Studio, name: str, seconds: float) -> np.ndarray:
    random = studio.random(name)
    return random.uniform(0.002, 0.02) * random.standard_normal(int(seconds * SAMPLE_RATE))


def quesst14(studio: Studio, root: Path, home: Path) -> None:
    """QbE: documents, queries of two words that some documents contain, and the ground truth."""
    scoring, texts = root / "scoring", {}
    for index in range(studio.count(40, minimum=8)):
        name = f"quesst14_{index:05d}"
        texts[name] = " ".join(plain_words(sentence(studio.random(f"qbe {name}"))))
        speaker = TRAIN_SPEAKERS[index % len(TRAIN_SPEAKERS)]
        write_wav(root / "Audio" / f"{name}.wav", studio.say(f"qbe {name}", texts[name], speaker))
        append(scoring / "language_key_utterances.lst", f"quesst14Database/Audio/{name}.wav nnenglish")
    pairs = sorted({f"{first} {second}" for text in texts.values() for first, second in pairwise(text.split())})
    long_pairs = [pair for pair in pairs if len(pair) >= 10]  # like queries of the real corpus
    order = studio.random("qbe queries").permutation(len(long_pairs))
    queries = studio.count(10, minimum=2)
    for split, start in (("dev", 0), ("eval", queries)):
        truth = scoring / f"groundtruth_quesst14_{split}" / f"quesst14_{split}.rttm"
        for index, pair in enumerate(long_pairs[position] for position in order[start : start + queries]):
            query = f"quesst14_{split}_{index:04d}"
            samples = studio.say(f"qbe {query}", pair, TEST_SPEAKERS[index % len(TEST_SPEAKERS)])
            write_wav(root / f"{split}_queries" / f"{query}.wav", samples)
            append(scoring / f"language_key_{split}.lst", f"quesst14Database/{split}_queries/{query}.wav nnenglish")
            for name in [name for name, text in texts.items() if f" {pair} " in f" {text} "]:
                append(truth, f"LEXEME {name} 1 0.00 1.00 {query} lex <NA> 0.5")


def voxceleb1(studio: Studio, root: Path, home: Path) -> None:
    """SID, ASV: PART/wav/SPEAKER/VIDEO/*.wav, the identification split, the verification trials."""
    test = []
    people = [("dev", speaker) for speaker in TRAIN_SPEAKERS[: studio.count(16, 2)]]
    people += [("test", speaker) for speaker in TEST_SPEAKERS[: studio.count(6, 2)]]
    videos = {"train": studio.count(6, 2), "dev": 2, "test": 2}
    for number, (part, speaker) in enumerate(people):
        person = f"id{10001 + number}"
        for code, (video, wavs) in enumerate(videos.items(), start=1):
            for index in range(wavs):
                path = f"{person}/{video}/{index:05d}.wav"
                text = sentence(studio.random(f"voxceleb {path}"))
                write_wav(root / part / "wav" / path, studio.say(f"voxceleb {path}", text, speaker))
                append(root / "iden_split.txt", f"{code} {path}")
                test += [(person, path)] if part == "test" else []
    random = studio.random("voxceleb trials")
    for same in (True, False):
        pairs = [(a, b) for i, a in enumerate(test) for b in test[i + 1 :] if (a[0] == b[0]) == same]
        for position in random.permutation(len(pairs))[: studio.count(60, minimum=4)]:
            (_, first), (_, second) = pairs[position]
            append(root / "veri_test2.txt", f"{int(same)} {first} {second}")


def libri2mix_diarization(studio: Studio, root: Path, home: Path) -> None:
    """SD: two speakers who overlap, as Kaldi folders with RTTM."""
    turns = defaultdict[tuple[str, int], list[str]](list)  # of each speaker of a split
    for split, index in studio.recordings({"train": 60, "dev": 6, "test": 12}, minimum=2):
        recording = f"{split}_{index:04d}"
        random = studio.random(f"sd {recording}")
        pair = random.choice(list(speakers_of(split)), 2, replace=False).tolist()
        spoken = [studio.say(f"sd {recording} {who}", sentence(random), who) for who in pair]
        starts = [0, int(len(spoken[0]) * random.uniform(0.4, 0.9))]
        ends = [start + len(samples) for start, samples in zip(starts, spoken, strict=True)]
        parts = [fit(np.pad(samples, (start, 0)), max(ends)) for start, samples in zip(starts, spoken, strict=True)]
        write_wav(root / split / "wav" / f"{recording}.wav", parts[0] + parts[1])
        append(root / split / "wav.scp", f"{recording} {home / split / 'wav' / recording}.wav")
        append(root / split / "reco2dur", f"{recording} {max(ends) / SAMPLE_RATE:.4f}")
        for who, start, end in zip(pair, starts, ends, strict=True):
            begin, stop, turn = start / SAMPLE_RATE, end / SAMPLE_RATE, f"{who}_{recording}"
            turns[split, who].append(turn)
            append(root / split / "segments", f"{turn} {recording} {begin:.4f} {stop:.4f}")
            append(root / split / "utt2spk", f"{turn} {who}")
            row = f"SPEAKER {recording} 1 {begin:.4f} {stop - begin:.4f} <NA> <NA> {who} <NA>"
            append(root / split / "rttm", row)
    for split, who in sorted(turns):
        append(root / split / "spk2utt", f"{who} {' '.join(turns[split, who])}")


def fluent_commands(studio: Studio, root: Path, home: Path) -> None:
    """IC: data/*.csv and wavs/speakers/."""
    columns = ("", "path", "speakerId", "transcription", "action", "object", "location")
    rows = defaultdict[str, list[dict[str, Any]]](list)
    for split, index in studio.recordings({"train": 192, "valid": 32, "test": 64}, minimum=len(COMMANDS)):
        random = studio.random(f"ic {split} {index}")
        slots, texts = list(COMMANDS.items())[index % len(COMMANDS)]  # every value is in the training data
        text = texts[int(random.integers(len(texts)))]
        speaker = speakers_of(split)[index // len(COMMANDS) % len(speakers_of(split))]
        path = f"wavs/speakers/{speaker}/{split}-{index:04d}.wav"
        write_wav(root / path, studio.say(f"ic {split} {index}", text, speaker))
        rows[split].append(dict(zip(columns, (index, path, speaker, text, *slots), strict=True)))
    for split in rows:
        write_csv(root / "data" / f"{split}_data.csv", rows[split])


def snips(studio: Studio, root: Path, home: Path) -> None:
    """SF: SPLIT/Speaker-*.wav, transcripts with slots, the slots' names."""
    people = {"train": ("Ivy", "Joey", "Salli", "Kendra"), "valid": ("Amy", "Nicole"), "test": ("Brian", "Emma")}
    for split, index in studio.recordings({"train": 200, "valid": 24, "test": 48}, minimum=4):
        text, tags, intent = request(studio.random(f"sf {split} {index}"))
        person = index % len(people[split])
        name = f"{people[split][person]}-snips-{split}-{index}"
        write_wav(root / split / f"{name}.wav", studio.say(f"sf {name}", text, speakers_of(split)[person]))
        append(root / "all.iob.snips.txt", f"{name} BOS {text.upper()} EOS\tO {' '.join(tags)} {intent}")
    (root / "slots.txt").write_text("\n".join(["slots", *SLOTS]))


# How each emotion sounds: prosody and loudness (dB)
EMOTIONS = {
    "neu": (Prosody(rate=175, pitch=50, range=45), -24.0),
    "hap": (Prosody(rate=200, pitch=75, range=90), -21.0),
    "ang": (Prosody(rate=220, pitch=55, range=25), -15.0),
    "sad": (Prosody(rate=130, pitch=30, range=10), -30.0),
}


def iemocap(studio: Studio, root: Path, home: Path) -> None:
    """ER: Session{1..5}/sentences/wav/DIALOG/*.wav and dialog/EmoEvaluation/*.txt; two speakers a session."""
    for session in range(1, 6):
        folder = root / f"Session{session}"
        for actor, sex in enumerate("FM"):
            dialog = f"Ses{session:02d}{sex}_impro01"
            labels = folder / "dialog" / "EmoEvaluation" / f"{dialog}.txt"
            append(labels, "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n")
            for index in range(studio.count(16, minimum=4)):
                emotion = list(EMOTIONS)[index % 4]
                name = f"{dialog}_{sex}{index:03d}"
                text = sentence(studio.random(f"er {name}"))
                samples = studio.say(f"er {name}", text, 2 * (330 + session) + actor, *EMOTIONS[emotion])
                write_wav(folder / "sentences" / "wav" / dialog / f"{name}.wav", samples)
                append(labels, f"[{index}.0000 - {index}.9000]\t{name}\t{emotion}\t[2.5000, 2.5000, 2.5000]")


def voicebank(studio: Studio, root: Path, home: Path) -> None:
    """SE: clean speech, and the same with noise at 0 to 10 dB SNR, as Kaldi lists."""
    for split, index in studio.recordings({"train": 32, "dev": 4, "test": 8}, minimum=2):
        name = f"{split}_{index:04d}"
        random = studio.random(f"se {name}")
        clean = studio.say(f"se {name}", sentence(random), speakers_of(split)[index % len(speakers_of(split))])
        loudness = np.sqrt(np.mean(clean**2)) * 10 ** (-random.uniform(0, 10) / 20)
        noisy = clean + loudness * random.standard_normal(len(clean))
        _scp(root / split, home / split, name, {"noisy": noisy, "clean": clean})


def libri2mix_separation(studio: Studio, root: Path, home: Path) -> None:
    """SS: two speakers at once, as Kaldi lists."""
    for split, index in studio.recordings({"train-100": 32, "dev_1000": 4, "test": 8}, minimum=2):
        name = f"{split}_{index:04d}"
        random = studio.random(f"ss {name}")
        pair = random.choice(list(speakers_of(split)), 2, replace=False).tolist()
        first, second = (studio.say(f"ss {name} {who}", sentence(random), who) for who in pair)
        first, second = first[: len(second)], second[: len(first)]
        _scp(root / split, home / split, name, {"mix_clean": first + second, "s1": first, "s2": second})


def _scp(folder: Path, home: Path, name: str, signals: dict[str, np.ndarray]) -> None:
    """Write one recording's signals, each with its line in SIGNAL/wav.scp."""
    for signal, samples in signals.items():
        write_wav(folder / signal / "wav" / f"{name}.wav", samples)
        append(folder / signal / "wav.scp", f"{name} {home / signal / 'wav' / name}.wav")


# by key of the corpora file
LAYOUTS: Mapping[str, Callable[[Studio, Path, Path], None]] = {
    layout.__name__: layout
    for layout in (
        *(librispeech, lexicon, speech_commands, speech_commands_test, quesst14, voxceleb1, libri2mix_diarization),
        *(fluent_commands, snips, iemocap, voicebank, libri2mix_separation),
    )
}
