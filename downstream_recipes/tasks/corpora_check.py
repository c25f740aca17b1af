"""What a task's corpora lack, and how much audio of them is there."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import soundfile

from distiller.common.progress import progress
from downstream_recipes.adaptation.ctc_datasets import read_lexicon, read_transcripts
from downstream_recipes.tasks.corpus_layouts import CORPORA, faults
from downstream_recipes.tasks.preparation import ASR_SPLITS
from downstream_recipes.tasks.recipes import PREPARED, REFERENCE
from downstream_recipes.tasks.tasks import Task
from upstream.errors import UserError


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
    found = [f"{name}: {fault}" for fault in faults(name, value)]
    return found or ([] if isinstance(value, list) else _missing_wavs(name, Path(value)))


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
