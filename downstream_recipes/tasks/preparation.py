"""Files that a task needs besides its corpus, made from it: vocabularies, ASR's lengths, ER's folds."""

import json
import os
import re
import string
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import soundfile

from distiller.common.files import cache_folder, write_csv, write_text
from distiller.common.progress import progress
from downstream_recipes.adaptation.corpus_key import corpus_key
from downstream_recipes.adaptation.ctc_datasets import find_audio
from upstream.errors import UserError

# ARPAbet as in the CMU dictionary and s3prl's lexicons: vowels in three degrees of stress, consonants
VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")
CONSONANTS = (
    *("B", "CH", "D", "DH", "F", "G", "HH", "JH", "K", "L", "M", "N", "NG"),
    *("P", "R", "S", "SH", "T", "TH", "V", "W", "Y", "Z", "ZH"),
)
PHONEMES = ("SIL", "SPN", *sorted([*(f"{vowel}{stress}" for vowel in VOWELS for stress in "012"), *CONSONANTS]))  # 71
# The content of each ${vocabulary.NAME}
VOCABULARIES: Mapping[str, str] = {
    "phonemes": "\n".join(PHONEMES),  # PR, for s3prl's word encoder
    "characters": "\n".join([" ", *string.ascii_uppercase, "'"]),  # SF, for s3prl's character encoder
    # ASR, fairseq's dictionary: `symbol count`, with | between words
    "letters": "".join(f"{symbol} 1\n" for symbol in ["|", *string.ascii_uppercase, "'"]),
}
ASR_SPLITS = ("train-clean-100", "dev-clean", "test-clean")
EMOTIONS = {"neu": 0, "hap": 1, "ang": 2, "sad": 3}  # SUPERB's four classes; excitement counts as happiness
EVALUATION_LINE = re.compile(r"\[[\d. -]+\]\t(?P<name>\S+)\t(?P<emotion>\w+)\t")


def asr_lengths(librispeech: Path) -> Path:
    """The folder of `<split>.csv` files from which ASR builds its buckets; made on first use from the audio headers.

    Raises:
        UserError: a split has no audio, or a file is not audio.
    """
    folder = cache_folder("superb") / f"asr-{corpus_key(librispeech)}"
    for split in ASR_SPLITS:
        path = folder / f"{split}.csv"
        if not path.exists():
            wavs = find_audio(librispeech / split, ".flac")
            with ThreadPoolExecutor() as pool:
                lengths = list(progress(pool.map(_samples, wavs), f"lengths of {split}", len(wavs)))
            rows = enumerate(zip((wav.relative_to(librispeech) for wav in wavs), lengths, strict=True))
            write_csv(path, [{"": i, "file_path": wav, "length": length, "label": 0} for i, (wav, length) in rows])
    return folder


def _samples(path: Path) -> int:
    try:
        return soundfile.info(os.fsencode(path)).frames  # pyright: ignore[reportArgumentType] - takes bytes
    except soundfile.LibsndfileError as error:
        raise UserError(f"{path} cannot be read as audio: {error}") from None


def emotion_folds(iemocap: Path) -> Path:
    """The folder of `Session{1..5}/{train,test}_meta_data.json`: fold k tests on session k and trains on the others.

    Raises:
        UserError: a session is missing, or none of its wavs has one of the four emotions.
    """
    folder = cache_folder("superb") / f"er-{corpus_key(iemocap)}"
    sessions = [f"Session{number}" for number in range(1, 6)]
    names = [folder / session / f"{split}_meta_data.json" for session in sessions for split in ("train", "test")]
    if not all(name.exists() for name in names):
        utterances = {session: _emotions(iemocap, session) for session in sessions}
        for session in sessions:
            train = [item for other in sessions if other != session for item in utterances[other]]
            for split, items in (("train", train), ("test", utterances[session])):
                content = {"labels": EMOTIONS, "meta_data": items}
                write_text(folder / session / f"{split}_meta_data.json", json.dumps(content))
    return folder


def _emotions(iemocap: Path, session: str) -> list[dict[str, str]]:
    """Path (relative to the corpus), label and speaker of a session's utterances, sorted by name."""
    wavs = {wav.stem: wav for wav in find_audio(iemocap / session / "sentences" / "wav", ".wav")}
    labels: dict[str, str] = {}
    for path in sorted((iemocap / session / "dialog" / "EmoEvaluation").glob("*.txt")):
        for line in path.read_text(errors="replace").splitlines():
            match = EVALUATION_LINE.match(line)
            if match:
                labels[match["name"]] = match["emotion"].replace("exc", "hap")
    utterances = [
        {"path": str(wavs[name].relative_to(iemocap)), "label": labels[name], "speaker": name.split("_")[0]}
        for name in sorted(wavs)
        if labels.get(name) in EMOTIONS
    ]
    if not utterances:
        folder = iemocap / session / "dialog" / "EmoEvaluation"
        raise UserError(f"{folder} has no utterance labelled neu, hap, exc, ang or sad")
    return utterances
