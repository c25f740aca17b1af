"""What is missing from a user's corpora, and how much audio they contain."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import soundfile

from distiller.common.progress import progress
from downstream_recipes.adaptation.ctc_datasets import read_lexicon, read_transcripts
from downstream_recipes.tasks.corpus_layouts import CORPORA, faults
from downstream_recipes.tasks.preparation import ASR_SPLITS
from downstream_recipes.tasks.recipes import corpora_of
from downstream_recipes.tasks.tasks import TASKS
from upstream.errors import UserError


def check_corpora(corpora: Mapping[str, Any]) -> tuple[str, bool]:
    """A report with lines for every task, and whether all ten tasks of the table can run."""
    names = list(dict.fromkeys(name for task in TASKS.values() for name in corpora_of(task.recipe)))
    wrong = {name: missing(name, corpora) for name in names}
    if not wrong["librispeech"] and not wrong["lexicon"]:
        wrong["lexicon"] = missing_words(corpora)
    folders = [name for name in names if not wrong[name] and Path(str(corpora[name])).is_dir()]
    amount = {name: f"{name} {hours(name, corpora):.2f} h" for name in folders}
    lines, complete = [], True
    for task in TASKS.values():
        needs = corpora_of(task.recipe)
        lacks = [name for name in needs if wrong[name]]
        complete = complete and (task.extra or not lacks)
        amounts = ", ".join(amount[name] for name in needs if name in amount)
        lines.append(f"{task.code:4} {'missing' if lacks else 'complete':9}{amounts}".rstrip())
        for name in lacks:
            lines += [*(f"       {fault}" for fault in wrong[name]), f"       get it: {CORPORA[name].source}"]
    return "\n".join(lines), complete


def missing(name: str, corpora: Mapping[str, Any]) -> list[str]:
    """The reasons why a corpus cannot be used, a line each; empty if it is complete."""
    lines = [f"{name}: {fault}" for fault in faults(name, corpora.get(name))]
    if lines or CORPORA[name].audio or not CORPORA[name].needs:
        return lines
    absent = [wav for wav in _listed(Path(corpora[name])) if not wav.exists()]
    return [f"{name}: {absent[0]} and {len(absent) - 1} more files of its wav.scp do not exist"] if absent else []


def _listed(root: Path) -> list[Path]:
    """The files named by Kaldi lists (wav.scp), without pipes."""
    rows = [line.split() for scp in sorted(root.glob("**/wav.scp")) for line in scp.read_text().splitlines()]
    return [Path(fields[1]) for fields in rows if len(fields) == 2]


def missing_words(corpora: Mapping[str, Any]) -> list[str]:
    """The words of PR that are in no lexicon, as one line."""
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
    """Hours of audio of a corpus, from the headers of its files; unreadable files do not count."""
    root, audio = Path(corpora[name]), CORPORA[name].audio
    paths = sorted(set(root.glob(audio) if audio else _listed(root)))
    with ThreadPoolExecutor() as pool:
        return sum(progress(pool.map(_seconds, paths), f"hours of {name}", len(paths))) / 3600


def _seconds(path: Path) -> float:
    try:
        header = soundfile.info(os.fsencode(path))  # pyright: ignore[reportArgumentType] - takes bytes
    except (soundfile.LibsndfileError, OSError):
        return 0.0
    return header.frames / header.samplerate
