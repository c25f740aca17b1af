"""The text of each utterance: from LibriSpeech's files, Lhotse's supervisions, or lines of PATH<TAB>TEXT."""

import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from lhotse import SupervisionSegment
from lhotse.cut.data import DataCut

from distiller.audio.decoding import source_path
from distiller.audio.skipped import Skipped
from distiller.common.files import disk_errors, expanded
from distiller.corpora.config import SYNTHETIC, CorpusConfig
from distiller.corpora.corpus import Corpus
from distiller.corpora.manifests import read_items
from distiller.corpora.prepared import original_id
from distiller.corpora.scanning import LIST, MANIFEST, locate
from distiller.finetuning.config import FineTuning, TextConfig
from distiller.finetuning.vocabulary import Vocabulary, make_vocabulary
from upstream.config import SAMPLE_RATE, EncoderConfig
from upstream.errors import UserError

LIBRISPEECH = "*.trans.txt"  # ID TEXT, beside the audio ID.flac
KINDS = f"PATH<TAB>TEXT ({', '.join(LIST)}), a Lhotse manifest ({', '.join(MANIFEST)}), or a folder with {LIBRISPEECH}"


@dataclass
class Transcripts:
    """The texts that were found, by identifiers of their audio."""

    by_id: dict[str, str] = field(default_factory=dict)  # of a Lhotse cut, or its recording
    by_path: dict[str, str] = field(default_factory=dict)  # absolute
    by_stem: dict[str, str] = field(default_factory=dict)  # of the file, in LibriSpeech

    def of(self, cut: DataCut) -> str | None:
        """The text of a cut, or of the original if it is a copy at another speed."""
        assert cut.recording is not None
        path, name = source_path(cut), original_id(cut.id)
        for texts, key in (
            (self.by_path, path),
            (self.by_id, name),
            (self.by_id, original_id(cut.recording.id)),
            (self.by_stem, Path(name).stem if "/" in name else name),
            (self.by_stem, Path(path).stem),
        ):
            if key in texts:
                return texts[key]
        return None


def find_transcripts(corpus: CorpusConfig, text: TextConfig, cuts: Sequence[DataCut]) -> Transcripts:
    """The transcripts in `text.path`, or those that come with the corpus.

    Raises:
        UserError: they cannot be read.
    """
    found = Transcripts()
    if text.path is not None:
        path = expanded(text.path).absolute()
        if path.is_dir():
            _read_librispeech(path.rglob(LIBRISPEECH), found)
        elif path.name.endswith(MANIFEST):
            _read_manifest(path, found)
        elif path.is_file():
            _read_lines(path, found)
        else:
            raise UserError(f"text.path {text.path} does not exist; it must be {KINDS}")
    elif corpus.path == SYNTHETIC:
        _read_supervisions(cuts, found)
    else:
        _, sources = locate(expanded(corpus.path).absolute(), corpus.subsets + corpus.validation)
        for source in sources:
            if source.is_dir():
                for manifest in sorted(source.rglob("cuts*.jsonl*")):  # of Lhotse Shar
                    _read_manifest(manifest, found)
            elif source.name.endswith(MANIFEST):
                _read_manifest(source, found)
            elif source.name.endswith(LIST) and source.suffix != ".tsv":  # fairseq's, with numbers after the tabs
                _read_lines(source, found)
        folders = sorted({Path(source_path(cut)).parent for cut in cuts})
        _read_librispeech((path for folder in folders for path in sorted(folder.glob(LIBRISPEECH))), found)
    return found


def _read_librispeech(paths: Iterable[Path], found: Transcripts) -> None:
    for path in paths:
        for line in _text_of(path).splitlines():
            name, _, text = line.partition(" ")
            found.by_stem[name] = text


def _read_lines(path: Path, found: Transcripts) -> None:
    """PATH<TAB>TEXT, in which a relative path is relative to the file's folder; lines without a tab have no text."""
    texts = dict(line.split("\t", 1) for line in _text_of(path).splitlines() if "\t" in line)
    for name, text in texts.items():
        found.by_path[os.path.abspath(path.parent / expanded(name.strip().strip('"')))] = text


def _text_of(path: Path) -> str:
    with disk_errors(path, "read"):
        content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line} cannot be read: it is not UTF-8") from error


def _read_manifest(path: Path, found: Transcripts) -> None:
    """The supervisions of cuts; or supervisions by themselves, by the id of their recordings."""
    items = read_items(path)
    loose = sorted((item for item in items if isinstance(item, SupervisionSegment)), key=_begin)
    for item in loose:
        before = found.by_id.get(item.recording_id)
        found.by_id[item.recording_id] = item.text or "" if before is None else f"{before} {item.text or ''}"
    _read_supervisions([item for item in items if getattr(item, "supervisions", None)], found)


def _read_supervisions(cuts: Iterable[Any], found: Transcripts) -> None:
    for cut in cuts:
        texts = [one.text for one in sorted(cut.supervisions, key=_begin) if one.text is not None]
        if texts:
            found.by_id[original_id(cut.id)] = " ".join(texts)


def _begin(supervision: SupervisionSegment) -> float:
    return supervision.start


@dataclass(frozen=True)
class Labelled:
    """A corpus with the text of each utterance."""

    train: list[DataCut]
    held_out: list[DataCut]
    texts: dict[str, str]  # by the id of the cut
    targets: dict[str, list[int]]  # the same as indices of the vocabulary
    vocabulary: Vocabulary
    skipped: list[Skipped]  # utterances that cannot be learned from


def label(corpus: Corpus, recipe: FineTuning, shape: EncoderConfig) -> Labelled:
    """The transcripts of a corpus, and the vocabulary that the recipe asks for.

    Args:
        shape: decides how many frames an utterance has.

    Raises:
        UserError: as `find_transcripts` and `make_vocabulary`; transcripts are missing, or have characters that the
            vocabulary lacks; no utterance of the training or test set can be used.
    """
    cuts = [*corpus.train, *corpus.validation]
    found = find_transcripts(recipe.corpus, recipe.text, cuts)
    missing = [cut for cut in cuts if found.of(cut) is None]
    if missing:
        place = f"text.path {recipe.text.path}" if recipe.text.path else f"{recipe.corpus.path} (text.path is null)"
        first = source_path(missing[0])
        raise UserError(f"{len(missing)} of {len(cuts)} utterances have no transcript in {place}; the first is {first}")
    texts = {cut.id: normalised(found.of(cut) or "", recipe.text) for cut in cuts}
    training, others = ([texts[cut.id] for cut in part] for part in (corpus.train, corpus.validation))
    vocabulary = make_vocabulary(recipe.vocabulary, training, others)
    lacking = [(cut, lacks) for cut in cuts if (lacks := vocabulary.lacks(texts[cut.id]))]
    if lacking:
        letters = "".join(sorted(set().union(*(lacks for _, lacks in lacking))))
        where = (
            f"{len(lacking)} transcripts (text.case is {recipe.text.case}), the first of {source_path(lacking[0][0])}"
        )
        raise UserError(f"vocabulary.path {recipe.vocabulary.path} lacks {letters!r:.100} of {where}")
    targets = {name: vocabulary.encode(text) for name, text in texts.items()}
    problems = {cut.id: problem for cut in cuts if (problem := _problem(cut, targets[cut.id], shape))}
    train, held_out = ([cut for cut in part if cut.id not in problems] for part in (corpus.train, corpus.validation))
    if not train or not held_out:
        name, problem = next(iter(problems.items()))
        left = "test" if train else "train"
        raise UserError(f"no utterance is left to {left} on: {len(problems)} cannot be used, such as {name}: {problem}")
    skipped = [Skipped(source_path(cut), problems[cut.id]) for cut in cuts if cut.id in problems]
    return Labelled(train, held_out, texts, targets, vocabulary, skipped)


def normalised(text: str, config: TextConfig) -> str:
    """A transcript normalised as in the recipe, with single spaces."""
    text = unicodedata.normalize("NFC", text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
    if config.case != "keep":
        text = text.upper() if config.case == "upper" else text.lower()
    if not config.punctuation:
        text = "".join(one if unicodedata.category(one)[0] in "LMN" or one == "'" else " " for one in text)
    return " ".join(text.split())


def _problem(cut: DataCut, target: Sequence[int], shape: EncoderConfig) -> str | None:
    """Why CTC cannot learn an utterance, if so: each token needs a frame, and a repeated token one more."""
    if not target:
        return "its transcript is empty"
    frames = int(shape.frame_count(int(cut.duration * SAMPLE_RATE)))
    needed = len(target) + sum(one == other for one, other in pairwise(target))
    return f"its transcript needs {needed} frames, but it has {frames}" if needed > frames else None
