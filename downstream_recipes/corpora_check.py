"""What each corpus has to contain, where it comes from, and how much audio of it is there."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile

from downstream_recipes.ctc_corpora import read_lexicon, read_transcripts
from downstream_recipes.preparation import ASR_SPLITS
from downstream_recipes.progress import progress
from downstream_recipes.recipes import PREPARED, REFERENCE
from downstream_recipes.tasks import Task
from upstream.errors import UserError

PARTS = ("train", "dev", "test")


@dataclass(frozen=True)
class Contents:
    """Globs below a corpus that must each match something, where to get it, and which files are its audio."""

    needs: tuple[str, ...]
    source: str
    audio: str = ""


CORPORA: Mapping[str, Contents] = {
    "librispeech": Contents(
        tuple(f"{split}/*/*/*{suffix}" for split in ASR_SPLITS for suffix in (".flac", ".trans.txt")),
        "openslr.org/12: train-clean-100, dev-clean, test-clean",
        "*-clean*/*/*/*.flac",
    ),
    "lexicon": Contents((), "s3prl/downstream/ctc/lexicon in s3prl's repository"),
    "speech_commands": Contents(
        ("yes/*.wav", "_background_noise_/*.wav"),
        "download.tensorflow.org/data/speech_commands_v0.01.tar.gz",
        "*/*.wav",
    ),
    "speech_commands_test": Contents(
        ("yes/*.wav", "_unknown_/*.wav", "_silence_/*.wav"),
        "download.tensorflow.org/data/speech_commands_test_set_v0.01.tar.gz",
        "*/*.wav",
    ),
    "quesst14": Contents(
        (
            "Audio/*.wav",
            "scoring/language_key_utterances.lst",
            *(f"scoring/language_key_{split}.lst" for split in ("dev", "eval")),
            *(f"scoring/groundtruth_quesst14_{split}/quesst14_{split}.rttm" for split in ("dev", "eval")),
        ),
        "speech.fit.vutbr.cz/files/quesst14Database.tgz",
        "*/*.wav",
    ),
    "voxceleb1": Contents(
        ("dev/wav/id*/*/*.wav", "test/wav/id*/*/*.wav"),
        "robots.ox.ac.uk/~vgg/data/voxceleb/vox1.html",
        "*/wav/*/*/*.wav",
    ),
    "voxceleb1_split": Contents((), "iden_split.txt of VoxCeleb1's page"),
    "voxceleb1_trials": Contents((), "veri_test2.txt of VoxCeleb1's page"),
    "libri2mix_diarization": Contents(
        (
            *(f"{part}/{name}" for part in PARTS for name in ("wav.scp", "segments", "utt2spk", "spk2utt", "reco2dur")),
            "test/rttm",
        ),
        "github.com/s3prl/LibriMix: generate_librimix_sd.sh, then scripts/prepare_diarization.py",
    ),
    "fluent_commands": Contents(
        (*(f"data/{split}_data.csv" for split in ("train", "valid", "test")), "wavs/speakers/*/*.wav"),
        "fluent.ai: Fluent Speech Commands",
        "wavs/speakers/*/*.wav",
    ),
    "snips": Contents(
        ("train/*.wav", "valid/*.wav", "test/*.wav", "all.iob.snips.txt", "slots.txt"),
        "s3prl's preprocess/snips_prepare_data.sh",
        "*/*.wav",
    ),
    "iemocap": Contents(
        tuple(
            f"Session{number}/{path}"
            for number in range(1, 6)
            for path in ("sentences/wav/*/*.wav", "dialog/EmoEvaluation/*.txt")
        ),
        "sail.usc.edu/iemocap",
        "Session*/sentences/wav/*/*.wav",
    ),
    "voicebank": Contents(
        tuple(f"{part}/{signal}/wav.scp" for part in PARTS for signal in ("noisy", "clean")),
        "s3prl's downstream/enhancement_stft/scripts/Voicebank/data_prepare.py",
    ),
    "libri2mix_separation": Contents(
        tuple(
            f"{part}/{name}/wav.scp" for part in ("train-100", "dev_1000", "test") for name in ("mix_clean", "s1", "s2")
        ),
        "s3prl's downstream/separation_stft/scripts/LibriMix/data_prepare.py",
    ),
}


def corpora_of(task: Task) -> list[str]:
    """The corpora that a task's recipe refers to, directly or by what is prepared from them."""
    found = [
        PREPARED[name][0] if kind == "prepared" else name
        for kind, name in REFERENCE.findall(task.recipe.read_text())
        if kind != "vocabulary"
    ]
    return list(dict.fromkeys(found))


def missing(name: str, corpora: Mapping[str, Any]) -> list[str]:
    """What keeps a corpus from being used, a line each; nothing when it is complete."""
    value = corpora.get(name)
    if value is None:
        return [f"{name}: not in the corpora file"]
    paths = [Path(path) for path in (value if isinstance(value, list) else [value])]
    absent = [f"{name}: {path} does not exist" for path in paths if not path.exists()]
    if absent:
        return absent
    found = [f"{name}: nothing at {paths[0] / need}" for need in CORPORA[name].needs if not any(paths[0].glob(need))]
    return found + (_missing_wavs(name, paths[0]) if not found else [])


def _missing_wavs(name: str, root: Path) -> list[str]:
    """Files that Kaldi lists name and that are not there."""
    listed = [wav for scp in sorted(root.glob("**/wav.scp")) for wav in _scp(scp)] if not CORPORA[name].audio else []
    absent = [wav for wav in listed if not wav.exists()]
    return [f"{name}: {absent[0]} and {len(absent) - 1} more files of its wav.scp do not exist"] if absent else []


def _scp(path: Path) -> Iterator[Path]:
    for line in path.read_text().splitlines():
        if len(line.split()) == 2:  # a pipe is not checked
            yield Path(line.split()[1])


def missing_words(corpora: Mapping[str, Any]) -> list[str]:
    """PR's words that no lexicon has, one line."""
    root = Path(corpora["librispeech"])
    try:
        known = read_lexicon(corpora["lexicon"], None)
    except UserError as error:
        return [str(error)]
    chapters = [path.parent for split in ASR_SPLITS for path in sorted((root / split).glob("*/*/*.trans.txt"))]
    words = {word for chapter in chapters for text in read_transcripts(chapter).values() for word in text.split()}
    absent = sorted(words - set(known))
    return [f"lexicon: {absent[0]} and {len(absent) - 1} more words of librispeech are not in it"] if absent else []


def hours(name: str, corpora: Mapping[str, Any]) -> float:
    """Hours of audio of a corpus that is there, from the files' headers; a file without one counts nothing."""
    root, audio = Path(corpora[name]), CORPORA[name].audio
    paths: Sequence[Path] = sorted(root.glob(audio)) if audio else []
    paths = paths or sorted({wav for scp in root.glob("**/wav.scp") for wav in _scp(scp)})
    with ThreadPoolExecutor() as pool:
        return sum(progress(pool.map(_seconds, paths), f"hours of {name}", len(paths))) / 3600


def _seconds(path: Path) -> float:
    try:
        header = soundfile.info(str(path))
    except (soundfile.LibsndfileError, OSError):
        return 0.0
    return header.frames / header.samplerate
