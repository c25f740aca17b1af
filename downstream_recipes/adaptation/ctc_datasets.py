"""The datasets of PR and SF that s3prl's release lacks, for its `ctc` task: wavs with token sequences, in buckets."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from distiller.common.files import disk_errors
from upstream.errors import UserError

Item = tuple[Path, list[int]]  # a wav and its tokens


class BucketDataset(Dataset):
    """Utterances by decreasing number of tokens; with buckets, item i is the bucket that starts at utterance i.

    Buckets overlap like s3prl's: an epoch has as many buckets as utterances, and step counts assume that.
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
        corpus: with `path`, and `lexicon`: files of `WORD PHONEME PHONEME ...` lines.

    Raises:
        UserError: a folder has no audio, a wav no transcript, a word is in no lexicon, or a phoneme not in the
            vocabulary.
    """

    def __init__(
        self, split: Sequence[str], tokenizer: Any, bucket_size: int, ascending: bool = False, **corpus: Any
    ) -> None:
        pronunciations = read_lexicon(corpus["lexicon"], set(tokenizer._vocab2idx))
        wavs = [wav for folder in split for wav in find_audio(Path(corpus["path"]) / folder, ".flac")]
        chapters = sorted({wav.parent for wav in wavs})
        transcripts = {key: text for chapter in chapters for key, text in read_transcripts(chapter).items()}
        silent = [wav for wav in wavs if wav.stem not in transcripts]
        if silent:
            raise UserError(f"{silent[0]} has no line in a .trans.txt beside it")
        lines = [transcripts[wav.stem].split() for wav in wavs]
        missing = sorted({word for words in lines for word in words} - set(pronunciations))
        if missing:
            files, folders = ", ".join(map(str, corpus["lexicon"])), ", ".join(split)
            others = f" and {len(missing) - 1} more words" if len(missing) > 1 else ""
            raise UserError(f"no lexicon ({files}) contains {missing[0]}{others} of {folders}")
        tokens = [tokenizer.encode(" ".join(pronunciations[word] for word in words)) for words in lines]
        super().__init__(zip(wavs, tokens, strict=True), bucket_size, ascending)


class SnipsDataset(BucketDataset):
    """Audio SNIPS: characters with slot marks, for the speakers listed in `<split>_speakers` of `corpus`.

    Raises:
        UserError: a folder has no audio, or none of the listed speakers.
    """

    def __init__(
        self, split: Sequence[str], tokenizer: Any, bucket_size: int, ascending: bool = False, **corpus: Any
    ) -> None:
        path = Path(corpus["path"])
        name = "all.iob.snips.txt" if tokenizer.token_type.endswith("-slot") else "all-trans.txt"
        transcripts = dict(_keyed_lines(path / name))
        items = []
        for folder in split:
            speakers = tuple(corpus[f"{folder}_speakers"])
            wavs = [wav for wav in find_audio(path / folder, ".wav") if wav.stem.startswith(speakers)]
            wavs = [wav for wav in wavs if wav.stem in transcripts]  # some have no transcript
            if not wavs:
                raise UserError(f"{path / folder} has no wav with a transcript of {', '.join(speakers)}")
            items += [(wav, tokenizer.encode(transcripts[wav.stem])) for wav in wavs]
        super().__init__(items, bucket_size, ascending)


def read_lexicon(paths: Sequence[str], phonemes: set[str] | None) -> dict[str, str]:
    """Word -> its first pronunciation, phonemes separated by spaces.

    Raises:
        UserError: a file cannot be read, or a phoneme is not one of `phonemes` (None: any is accepted).
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


def find_audio(folder: Path, suffix: str) -> list[Path]:
    """The files with this suffix below a folder.

    Raises:
        UserError: there are none.
    """
    paths = sorted(folder.rglob(f"*{suffix}"))
    if not paths:
        raise UserError(f"{folder} has no {suffix} file")
    return paths


def _keyed_lines(path: Path) -> Iterator[tuple[str, str]]:
    """First word and rest of each line that is not empty."""
    with disk_errors(path, "read"), path.open(encoding="utf-8") as file:
        try:
            for line in file:
                words = line.strip("\r\n ").split(None, 1)
                if words:
                    yield words[0], words[1] if len(words) > 1 else ""
        except UnicodeDecodeError:
            raise UserError(f"{path} is not a text file") from None
