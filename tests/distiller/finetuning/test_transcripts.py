"""Transcripts from every place, what they become, and utterances that CTC cannot learn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.utils import fastcopy

from distiller.audio.decoding import Decoder
from distiller.audio.inventory import Amount, Inventory
from distiller.corpora.config import CorpusConfig
from distiller.corpora.corpus import Corpus, open_corpus
from distiller.finetuning.config import FineTuning, TextConfig, resolve
from distiller.finetuning.transcripts import Labelled, label, normalised
from tests.distiller.conftest import TEACHER
from tests.distiller.finetuning.conftest import SmallFineTuning
from upstream.errors import UserError

SPLIT = ["corpus.validation_share=0.3"]


def labelled(corpus: str, *overrides: str) -> Labelled:
    recipe = resolve("ctc", "bundled", corpus, [*SPLIT, *overrides])
    return label(open_corpus(recipe.corpus, Decoder(TEACHER.min_samples)), recipe, TEACHER)


def texts(corpus: str, *overrides: str) -> dict[str, str]:
    """By the stem of the file."""
    return {Path(name).stem: text for name, text in labelled(corpus, *overrides).texts.items()}


@pytest.fixture
def said(small: SmallFineTuning) -> dict[str, str]:
    lines = [line.split(" ", 1) for path in Path("corpus").rglob("*.trans.txt") for line in path.open()]
    return {name: text.strip() for name, text in lines}


def test_beside_the_audio_in_librispeechs_layout(said: dict[str, str]) -> None:
    assert len(said) == 8
    assert texts("corpus") == said
    assert texts("corpus", "corpus.subsets=[train]") == {name: said[name] for name in said if "train" in name}


def test_behind_the_tabs_of_a_list(said: dict[str, str]) -> None:
    paths = {path.stem: path for path in Path("corpus").rglob("*.flac")}
    Path("list.txt").write_text("".join(f"{paths[name]}\t{text}\n" for name, text in said.items()))
    for path in Path("corpus").rglob("*.trans.txt"):
        path.unlink()
    assert texts("list.txt") == said
    assert texts("corpus", "text.path=list.txt") == said


def test_in_lhotses_supervisions(said: dict[str, str]) -> None:
    recordings = RecordingSet.from_dir("corpus", "*.flac")
    segments = [
        SupervisionSegment(f"{one.id}-{part}", one.id, 0.1 * part, 0.1, text=text)
        for one in recordings
        for part, text in reversed(list(enumerate(said[one.id].split())))
    ]
    cuts = CutSet.from_manifests(recordings=recordings, supervisions=SupervisionSet.from_segments(segments))
    cuts.to_file("cuts.jsonl.gz")
    recordings.to_file("recordings.jsonl.gz")
    SupervisionSet.from_segments(segments).to_file("supervisions.jsonl.gz")
    found = labelled("cuts.jsonl.gz").texts.values()
    assert sorted(found) == sorted(said.values())
    apart = labelled("recordings.jsonl.gz", "text.path=supervisions.jsonl.gz").texts
    assert apart == said | {name: text for name, text in apart.items() if name not in said}
    assert sorted(apart.values()) == sorted(said.values())


def test_in_a_shar_folder(said: dict[str, str]) -> None:
    cuts = RecordingSet.from_dir("corpus", "*.flac")
    named = CutSet.from_cuts(
        fastcopy(one.to_cut(), id=one.id, supervisions=[SupervisionSegment(one.id, one.id, 0, 0.1, text=said[one.id])])
        for one in cuts
    )
    Path("shar").mkdir()
    named.to_shar("shar", fields={"recording": "flac"}, shard_size=3)
    assert labelled("shar").texts == said


def test_those_of_another_folder_serve_a_corpus_without(said: dict[str, str]) -> None:
    Path("texts").mkdir()
    for path in list(Path("corpus").rglob("*.trans.txt")):
        path.rename(Path("texts", f"{path.parts[1]}.trans.txt"))
    with pytest.raises(UserError, match=r"8 of 8 utterances have no transcript in corpus .* the first is .*flac"):
        labelled("corpus")
    assert texts("corpus", "text.path=texts") == said


def test_one_missing_transcript_is_named(said: dict[str, str]) -> None:
    path = next(Path("corpus/train").rglob("*.trans.txt"))
    path.write_text("".join(line for line in path.open() if not line.startswith("train-3")))
    with pytest.raises(UserError, match=r"1 of 8 utterances .* the first is .*train-3.flac"):
        labelled("corpus")


@pytest.mark.parametrize(
    ("text", "settings", "expected"),
    [
        ("  It\N{RIGHT SINGLE QUOTATION MARK}s  a well-known, old  dog!\t", {}, "IT'S A WELL KNOWN OLD DOG"),
        ("It's a dog.", {"case": "lower", "punctuation": True}, "it's a dog."),
        ("Café №5", {"case": "keep"}, "Café 5"),
        ("Cafe\u0301", {}, "CAFÉ"),
        ("...", {}, ""),
    ],
)
def test_a_text_is_normalised(text: str, settings: dict[str, Any], expected: str) -> None:
    assert normalised(text, TextConfig(**settings)) == expected


def recorded(tmp_path: Path, texts: dict[str, tuple[int, str]]) -> tuple[Corpus, FineTuning]:
    """Files of so many samples; the last is held out."""
    lines = []
    for name, (samples, text) in texts.items():
        soundfile.write(tmp_path / f"{name}.wav", np.random.default_rng(0).normal(0, 0.1, samples), 16_000)
        lines.append(f"{tmp_path / name}.wav\t{text}\n")
    (tmp_path / "list.txt").write_text("".join(lines))
    recipe = resolve("ctc", "bundled", str(tmp_path / "list.txt"))
    corpus = open_corpus(
        CorpusConfig(path=str(tmp_path / "list.txt"), window_seconds=None), Decoder(TEACHER.min_samples)
    )
    cuts = sorted(corpus.train + corpus.validation, key=lambda cut: cut.id)
    inventory = Inventory(Amount(), Amount(), 0, Amount(), Amount(), 0, {}, 0.0, 1.0)
    return Corpus(cuts[:-1], cuts[-1:], [], inventory), recipe


def test_a_text_longer_than_its_frames_is_set_aside(tmp_path: Path) -> None:
    """TEACHER has floor((1680 - 400) / 320) + 1 = 5 frames for 1,680 samples; AABC needs 5, ABBAC 6."""
    files = {"a": (1680, "AABC"), "b": (1679, "AABC"), "c": (1680, "ABBAC"), "d": (1680, " - "), "e": (1680, "AB CD")}
    found = label(*recorded(tmp_path, files), TEACHER)
    assert [cut.id for cut in found.train] == ["a.wav"]
    assert [cut.id for cut in found.held_out] == ["e.wav"]
    assert [(Path(row.path).name, row.reason) for row in found.skipped] == [
        ("b.wav", "its transcript needs 5 frames, but it has 4"),
        ("c.wav", "its transcript needs 6 frames, but it has 5"),
        ("d.wav", "its transcript is empty"),
    ]
    assert found.vocabulary.tokens == ["<pad>", "|", "A", "B", "C", "D"]
    assert found.targets["e.wav"] == [2, 3, 1, 4, 5]


def test_nothing_to_learn_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"no utterance is left to train on: 1 cannot be used, such as a\.wav: its transcript is empty"
    ):
        label(*recorded(tmp_path, {"a": (1680, ""), "b": (1680, "A")}), TEACHER)
