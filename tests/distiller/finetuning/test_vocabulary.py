"""Vocabularies of characters and of pieces of words, as ours and as tokenizers of transformers."""

import re
from pathlib import Path

import pytest

from distiller.finetuning.config import VocabularyConfig
from distiller.finetuning.vocabulary import Vocabulary, make_vocabulary
from upstream.errors import UserError

TEXTS = ["THE CAT SAT ON THE MAT", "A MAT IS ON THE CAT", "BATS SAT"] * 3


def characters() -> Vocabulary:
    return make_vocabulary(VocabularyConfig(), ["BE", "A B"], ["É"])


def pieces() -> Vocabulary:
    return make_vocabulary(VocabularyConfig(kind="bpe", size=25), TEXTS, ["É"])


def test_characters_come_from_all_texts_in_their_order() -> None:
    vocabulary = characters()
    assert vocabulary.tokens == ["<pad>", "|", "A", "B", "E", "É"]
    assert vocabulary.encode("BE A") == [3, 4, 1, 2]
    assert vocabulary.decode([1, 3, 4, 1, 1, 2]) == "BE A"


def test_pieces_are_the_same_each_time_and_cover_the_characters_of_all_texts() -> None:
    vocabulary = pieces()
    assert vocabulary.tokens == pieces().tokens
    assert len(vocabulary) == 26
    assert "▁THE" in vocabulary.tokens
    assert vocabulary.index["É"] > 0
    for text in [*TEXTS, "BAT É"]:
        assert vocabulary.decode(vocabulary.encode(text)) == text
    assert len(vocabulary.encode("THE CAT")) < len("THE CAT")


@pytest.mark.parametrize("make", [characters, pieces])
def test_it_survives_a_file(make) -> None:
    vocabulary = make()
    copy = Vocabulary.from_dict(vocabulary.to_dict())
    assert (copy.tokens, copy.kind) == (vocabulary.tokens, vocabulary.kind)
    assert copy.encode("A B") == vocabulary.encode("A B")


@pytest.mark.parametrize("make", [characters, pieces])
def test_what_it_lacks_is_listed_and_not_encoded(make) -> None:
    vocabulary = make()
    assert vocabulary.lacks("A XÜB") == ["X", "Ü"]
    assert vocabulary.lacks("A B") == []
    with pytest.raises(UserError, match="the vocabulary lacks X"):
        vocabulary.encode("X")


def test_ones_own_characters(tmp_path: Path) -> None:
    path = tmp_path / "letters.txt"
    path.write_text("B\n|\nA\n")
    assert make_vocabulary(VocabularyConfig(path=str(path)), ["XYZ"]).tokens == ["<pad>", "B", "|", "A"]
    path.write_text("B\nA\n")
    assert make_vocabulary(VocabularyConfig(path=str(path)), []).tokens == ["<pad>", "|", "B", "A"]


def test_ones_own_pieces(tmp_path: Path) -> None:
    (tmp_path / "bpe.model").write_bytes(pieces().model)
    config = VocabularyConfig(kind="bpe", path=str(tmp_path / "bpe.model"))
    assert make_vocabulary(config, ["XYZ"]).tokens == pieces().tokens


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        (b"AB\nC\n", "characters", "must list distinct single characters, one per line, such as 'AB'"),
        (b"A\nA\n", "characters", "must list distinct single characters, one per line"),
        (b"", "characters", "must list distinct single characters, one per line"),
        (b"\xff\xfe", "characters", "is not a UTF-8 text file"),
        (b"A\nB\n", "bpe", "is not a sentencepiece model"),
    ],
)
def test_a_file_that_is_none_is_one_line(content: bytes, kind, said: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match=rf"vocabulary\.path .*/x {re.escape(said)}"):
        make_vocabulary(VocabularyConfig(kind=kind, path=str(tmp_path / "x")), TEXTS)


@pytest.mark.parametrize("size", [3, 5000])
def test_too_few_or_too_many_pieces(size: int) -> None:
    with pytest.raises(UserError, match=rf"vocabulary\.size is {size}, which sentencepiece rejects: Vocabulary size"):
        make_vocabulary(VocabularyConfig(kind="bpe", size=size), TEXTS)


def test_a_bar_is_no_character_since_it_ends_words() -> None:
    with pytest.raises(UserError, match=r"text\.punctuation is True, but it must be false"):
        make_vocabulary(VocabularyConfig(), ["A|B"])


@pytest.mark.parametrize("make", [characters, pieces])
def test_a_tokenizer_of_transformers_decodes_the_same(make, tmp_path: Path) -> None:
    """Of the best token of each frame, from which it merges repetitions and leaves blanks out."""
    from transformers import AutoTokenizer

    vocabulary = make()
    for name, content in vocabulary.tokenizer_files().items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "hubert"}')
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "A BEÉB" if make is characters else "THE CATS SAT ON BATÉ A"
    tokens = vocabulary.encode(text)
    frames = [0, *(frame for token in tokens for frame in (token, token, 0)), 0]
    assert tokenizer.decode(frames) == text == vocabulary.decode(tokens)
    assert (len(tokenizer), tokenizer.pad_token_id) == (len(vocabulary), 0)
    if make is characters:
        assert tokenizer("A BE").input_ids == vocabulary.encode("A BE")
