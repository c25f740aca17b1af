"""The datasets of PR and SF that s3prl's release lacks, for its `ctc` task: wavs with token sequences, in buckets."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from upstream.errors import UserError

Item = tuple[Path, list[int]]  # a wav and its tokens


class BucketDataset(Dataset):
    """Utterances by falling number of tokens; with buckets, item i is the bucket that starts at utterance i.

    Buckets overlap as s3prl's do: an epoch has as many of them as utterances, and its step counts refer to that.
    """

    def __init__(self, items: Iterable[Item], bucket_size: int, ascending: bool) -> None:
        self.items = sorted(items, key=lambda item: len(item[1]), reverse=not ascending)
        self.bucket_size = bucket_size

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Item | list[Item]:
        if self.bucket_size <= 1:
            return self.items[index]
        start = max(min(index, len(self.items) - self.bucket_size), 0)
        return self.items[start : start + self.bucket_size]


class LibriPhoneDataset(BucketDataset):
    """LibriSpeech with the phonemes of a lexicon, the first pronunciation of each word.

    Args:
        split: folders under `path`.
        tokenizer: s3prl's word encoder over the phoneme vocabulary.
        lexicon: files of `WORD PHONEME PHONEME ...` lines.

    Raises:
        UserError: a folder without audio, a wav without a transcript, a word that no lexicon has, or a phoneme that
            the vocabulary lacks.
    """

    def __init__(
        self,
        split: Sequence[str],
        tokenizer: Any,
        bucket_size: int,
        path: str | Path,
        lexicon: Sequence[str],
        ascending: bool = False,
        **kwargs: Any,
    ) -> None:
        pronunciations = read_lexicon(lexicon, set(tokenizer._vocab2idx))
        wavs = [wav for folder in split for wav in find_audio(Path(path) / folder, ".flac")]
        transcripts: dict[str, str] = {}
        for folder in sorted({wav.parent for wav in wavs}):
            transcripts.update(read_transcripts(folder))
        words = [(wav, transcript_of(wav, transcripts).split()) for wav in wavs]
        missing = sorted({word for _, line in words for word in line} - set(pronunciations))
        if missing:
            files, folders = ", ".join(map(str, lexicon)), ", ".join(split)
            others = f" and {len(missing) - 1} more words" if len(missing) > 1 else ""
            raise UserError(f"{missing[0]}{others} of {folders}: in no lexicon ({files})")
        super().__init__(
            ((wav, tokenizer.encode(" ".join(pronunciations[word] for word in line))) for wav, line in words),
            bucket_size,
            ascending,
        )


class SnipsDataset(BucketDataset):
    """Audio SNIPS: characters with slot marks, of the speakers that `<split>_speakers` lists.

    Raises:
        UserError: a folder without audio, or none of its speakers listed.
    """

    def __init__(
        self,
        split: Sequence[str],
        tokenizer: Any,
        bucket_size: int,
        path: str | Path,
        ascending: bool = False,
        **kwargs: Any,
    ) -> None:
        name = "all.iob.snips.txt" if tokenizer.token_type.endswith("-slot") else "all-trans.txt"
        transcripts = dict(_keyed_lines(Path(path) / name))
        items = []
        for folder in split:
            speakers = tuple(kwargs[f"{folder}_speakers"])
            wavs = [wav for wav in find_audio(Path(path) / folder, ".wav") if wav.stem.startswith(speakers)]
            wavs = [wav for wav in wavs if wav.stem in transcripts]  # the corpus has some without
            if not wavs:
                raise UserError(f"{Path(path) / folder}: no wav with a transcript of {', '.join(speakers)}")
            items += [(wav, tokenizer.encode(transcripts[wav.stem])) for wav in wavs]
        super().__init__(items, bucket_size, ascending)


def read_lexicon(paths: Sequence[str], phonemes: set[str] | None) -> dict[str, str]:
    """Word -> its first pronunciation, phonemes with spaces between.

    Raises:
        UserError: a file that is missing, or a phoneme that is not among `phonemes` (None: any may be).
    """
    pronunciations: dict[str, str] = {}
    for path in map(Path, paths):
        for word, pronunciation in _keyed_lines(path):
            unknown = [phoneme for phoneme in pronunciation.split() if phonemes and phoneme not in phonemes]
            if unknown:
                raise UserError(f"{path}: phoneme {unknown[0]} of {word} is not in the phoneme vocabulary")
            pronunciations.setdefault(word, " ".join(pronunciation.split()))
    return pronunciations


def read_transcripts(folder: Path) -> dict[str, str]:
    """Utterance -> words, from the `*.trans.txt` of a LibriSpeech chapter."""
    return {key: text for path in sorted(folder.glob("*.trans.txt")) for key, text in _keyed_lines(path)}


def transcript_of(wav: Path, transcripts: dict[str, str]) -> str:
    """Raises: UserError: the wav has none."""
    if wav.stem not in transcripts:
        raise UserError(f"{wav}: no line for it in a .trans.txt beside it")
    return transcripts[wav.stem]


def find_audio(folder: Path, suffix: str) -> list[Path]:
    """Raises: UserError: the folder is missing or has no such file."""
    found = sorted(folder.rglob(f"*{suffix}"))
    if not found:
        raise UserError(f"{folder}: no {suffix} file there")
    return found


def _keyed_lines(path: Path) -> Iterator[tuple[str, str]]:
    """First word and rest of each line that is not empty."""
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                words = line.strip("\r\n ").split(None, 1)
                if words:
                    yield words[0], words[1] if len(words) > 1 else ""
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file") from None
