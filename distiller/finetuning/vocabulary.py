"""The tokens of a CTC head: characters or word pieces, and the blank at index 0."""

import base64
import io
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from distiller.common.files import disk_errors, expanded
from distiller.finetuning.config import VocabularyConfig
from upstream.errors import UserError, require, shown

BLANK, SPACE = "<pad>", "|"  # as CTC tokenizers of `transformers` call them
WORD_BEGIN = "\N{LOWER ONE EIGHTH BLOCK}"  # sentencepiece's, at the beginning of a piece
CHARACTERS, BPE = "characters", "bpe"


class Vocabulary:
    """Text to indices and back. Spaces separate words; a text has at least one word.

    Args:
        tokens: the blank, then characters (SPACE for a space) or pieces of words.
        model: sentencepiece's, serialised, whose pieces are tokens[1:]; b"" for characters.
    """

    def __init__(self, tokens: Sequence[str], model: bytes = b"") -> None:
        self.tokens, self.model = list(tokens), model
        self.index = {token: index for index, token in enumerate(self.tokens)}

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def kind(self) -> str:
        return BPE if self.model else CHARACTERS

    @cached_property
    def pieces(self) -> Any:
        """Sentencepiece's processor."""
        return _sentencepiece().SentencePieceProcessor(model_proto=self.model)

    def encode(self, text: str) -> list[int]:
        """The indices of a text; UserError for what `lacks` lists."""
        if missing := self.lacks(text):
            raise UserError(f"the vocabulary lacks {', '.join(missing)}")
        if self.model:
            return [piece + 1 for piece in self.pieces.encode(text)]
        return [self.index[SPACE if character == " " else character] for character in text]

    def lacks(self, text: str) -> list[str]:
        """The characters of a text that the vocabulary has no token for."""
        if self.model:
            unknown = self.pieces.unk_id()
            return sorted(character for character in set(text) - {" "} if unknown in self.pieces.encode(character))
        return sorted(character for character in set(text) if not self._has(character))

    def _has(self, character: str) -> bool:
        return SPACE in self.index if character == " " else character in self.index and character != SPACE

    def decode(self, indices: Iterable[int]) -> str:
        """The text of indices without blanks and repetitions."""
        if self.model:
            return self.pieces.decode([index - 1 for index in indices])
        text = "".join(self.tokens[index] for index in indices)
        return " ".join(text.replace(SPACE, " ").split())

    def tokenizer_files(self) -> dict[str, str]:
        """The files for `AutoTokenizer` of `transformers`, whose `decode` merges repetitions and removes blanks.

        With word pieces it only decodes; sentencepiece's model is needed to encode.
        """
        settings: dict[str, Any] = {"pad_token": BLANK, "bos_token": None, "eos_token": None}
        if not self.model:
            settings |= {"tokenizer_class": "Wav2Vec2CTCTokenizer", "word_delimiter_token": SPACE, "unk_token": BLANK}
            content = {"vocab.json": self.index, "tokenizer_config.json": settings | {"do_lower_case": False}}
            return {name: json.dumps(value, indent=1, ensure_ascii=False) + "\n" for name, value in content.items()}
        from tokenizers import Tokenizer, decoders, models  # comes with `transformers`

        tokenizer = Tokenizer(models.WordLevel(self.index, unk_token=self.tokens[1]))
        merged = decoders.CTC(pad_token=BLANK, word_delimiter_token=WORD_BEGIN, cleanup=True)
        tokenizer.decoder = decoders.Sequence([merged, decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": self.tokens[1]}
        return {"tokenizer.json": tokenizer.to_str(), "tokenizer_config.json": json.dumps(settings, indent=1) + "\n"}

    def to_dict(self) -> dict[str, Any]:
        model = {"model": base64.b64encode(self.model).decode()} if self.model else {}
        return {"kind": self.kind, "tokens": self.tokens} | model

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Vocabulary":
        """The inverse of `to_dict`. Raises: KeyError, TypeError or ValueError: it is damaged."""
        vocabulary = cls([str(token) for token in values["tokens"]], base64.b64decode(values.get("model", "")))
        if vocabulary.tokens[:1] != [BLANK] or len(vocabulary.index) != len(vocabulary):
            raise ValueError("tokens must be different and begin with the blank")
        return vocabulary


def make_vocabulary(config: VocabularyConfig, training: Sequence[str], others: Sequence[str] = ()) -> Vocabulary:
    """The vocabulary of a recipe.

    Args:
        training, others: training and test texts; word pieces come from the former only, characters from all of them.

    Raises:
        UserError: a file that cannot be used, or more pieces than the texts allow.
    """
    if config.path is not None:
        return _read(config, expanded(config.path))
    characters = sorted(set().union(*training, *others) - {" "})
    require(
        SPACE not in characters,
        "text.punctuation",
        True,
        f"false when a transcript contains {SPACE}, which marks word ends",
    )
    if config.kind == CHARACTERS:
        return Vocabulary([BLANK, SPACE, *characters])
    return _trained(config.size, training, characters)


def _trained(size: int, texts: Sequence[str], characters: Sequence[str]) -> Vocabulary:
    trainer, model = _sentencepiece().SentencePieceTrainer, io.BytesIO()
    try:
        trainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type=BPE,
            vocab_size=size,
            character_coverage=1.0,
            required_chars="".join(characters),
            normalization_rule_name="identity",
            bos_id=-1,
            eos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split()).rpartition("] ")[2]
        raise UserError(f"vocabulary.size is {size}, which sentencepiece rejects: {reason:.200}") from None
    return _of_model(model.getvalue())


def _of_model(model: bytes) -> Vocabulary:
    pieces = _sentencepiece().SentencePieceProcessor(model_proto=model)
    return Vocabulary([BLANK, *map(pieces.id_to_piece, range(len(pieces)))], model)


def _read(config: VocabularyConfig, path: Path) -> Vocabulary:
    with disk_errors(path, "read"):
        content = path.read_bytes()
    if config.kind == BPE:
        try:
            return _of_model(content)
        except RuntimeError:
            raise UserError(f"vocabulary.path {path} is not a sentencepiece model") from None
    try:
        lines = unicodedata.normalize("NFC", content.decode("utf-8-sig")).splitlines()
    except UnicodeDecodeError:
        raise UserError(f"vocabulary.path {path} is not a UTF-8 text file; a model needs vocabulary.kind=bpe") from None
    characters = [line if line == " " else line.strip() for line in lines]
    characters = [SPACE if character == " " else character for character in characters if character]
    characters = [character for character in characters if character != BLANK]  # it may list the blank
    wrong = [character for character in characters if len(character) != 1]
    if wrong or len(set(characters)) != len(characters) or not characters:
        odd = f", such as {shown(wrong[0])}" if wrong else ""
        raise UserError(f"vocabulary.path {path} must list distinct single characters, one per line{odd}")
    return Vocabulary([BLANK, *([] if SPACE in characters else [SPACE]), *characters])


def _sentencepiece() -> Any:
    """Raises: UserError: it is not installed."""
    try:
        import sentencepiece
    except ImportError:
        raise UserError("vocabulary.kind is bpe, which needs sentencepiece; run uv sync --group recognition") from None
    return sentencepiece
