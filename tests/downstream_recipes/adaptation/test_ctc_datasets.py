from pathlib import Path

import pytest

from downstream_recipes.adaptation.ctc_datasets import LibriPhoneDataset, SnipsDataset
from downstream_recipes.tasks.preparation import VOCABULARIES
from upstream.errors import UserError

text = pytest.importorskip("s3prl.downstream.ctc.text")


@pytest.fixture
def librispeech(tmp_path: Path) -> Path:
    chapter = tmp_path / "LibriSpeech" / "dev-clean" / "1" / "2"
    chapter.mkdir(parents=True)
    lines = {"1-2-0000": "A DOG", "1-2-0001": "DOG DOG DOG", "1-2-0002": "A"}
    for name in lines:
        (chapter / f"{name}.flac").touch()
    (chapter / "1-2.trans.txt").write_text("".join(f"{name} {words}\n" for name, words in lines.items()))
    (tmp_path / "lexicon.txt").write_text("A AH0\nA EY1\nDOG\tD AO1 G\n\n")
    return tmp_path


def phonemes(folder: Path, bucket_size: int = 1, **changes) -> LibriPhoneDataset:
    (folder / "phonemes.txt").write_text(VOCABULARIES["phonemes"])
    tokenizer = text.load_text_encoder("word", str(folder / "phonemes.txt"))
    arguments = {"path": folder / "LibriSpeech", "lexicon": [str(folder / "lexicon.txt")], **changes}
    return LibriPhoneDataset(["dev-clean"], tokenizer, bucket_size, **arguments)


def test_words_become_phonemes_longest_first(librispeech):
    dataset = phonemes(librispeech)
    tokenizer = text.load_text_encoder("word", str(librispeech / "phonemes.txt"))
    assert [path.stem for path, _ in dataset] == ["1-2-0001", "1-2-0000", "1-2-0002"]
    tokens = dataset[1][1]
    assert tokenizer.decode(tokens) == "AH0 D AO1 G"  # the first pronunciation of A
    assert tokens[-1] == tokenizer.eos_idx
    assert tokenizer.vocab_size == 71 + 3


def test_a_bucket_starts_at_each_utterance_and_is_always_full(librispeech):
    dataset = phonemes(librispeech, bucket_size=2)
    assert len(dataset) == 3
    assert [[path.stem[-1] for path, _ in dataset[index]] for index in range(3)] == [["1", "0"], ["0", "2"], ["0", "2"]]
    assert len(phonemes(librispeech, bucket_size=9)[2]) == 3


def test_what_is_wrong_with_librispeech_is_a_one_line_error(librispeech):
    (librispeech / "lexicon.txt").write_text("A AH0\n")
    with pytest.raises(UserError, match=r"no lexicon \(.*lexicon\.txt\) contains DOG of dev-clean"):
        phonemes(librispeech)
    (librispeech / "lexicon.txt").write_text("A AH7\n")
    with pytest.raises(UserError, match="phoneme AH7 of A is not in the phoneme vocabulary"):
        phonemes(librispeech)
    with pytest.raises(UserError, match="absent"):
        phonemes(librispeech, lexicon=[str(librispeech / "absent.txt")])
    (librispeech / "LibriSpeech" / "dev-clean" / "1" / "2" / "1-2-0003.flac").touch()
    (librispeech / "lexicon.txt").write_text("A AH0\nDOG D AO1 G\n")
    with pytest.raises(UserError, match=r"1-2-0003\.flac has no line in"):
        phonemes(librispeech)
    with pytest.raises(UserError, match=r"elsewhere.*has no \.flac file"):
        phonemes(librispeech, path=librispeech / "elsewhere")


def test_slots_are_marked_in_the_characters(tmp_path):
    (tmp_path / "valid").mkdir()
    for name in ("Amy-snips-valid-0", "Amy-snips-valid-1", "Brian-snips-valid-0", "Amy-snips-valid-9"):
        (tmp_path / "valid" / f"{name}.wav").touch()
    (tmp_path / "all.iob.snips.txt").write_text(
        "Amy-snips-valid-0 BOS PLAY THE SONG EOS\tO O O object PlayMusic\n"
        "Amy-snips-valid-1 BOS IN NEW YORK EOS\tO O city city GetWeather\n"
        "Brian-snips-valid-0 BOS PLAY EOS\tO O PlayMusic\n"
    )
    (tmp_path / "slots.txt").write_text("slots\nobject\ncity")
    (tmp_path / "characters.txt").write_text(VOCABULARIES["characters"])
    tokenizer = text.load_text_encoder(
        "character-slot", *(str(tmp_path / f"{name}.txt") for name in ("characters", "slots"))
    )
    dataset = SnipsDataset(["valid"], tokenizer, 1, path=tmp_path, valid_speakers=["Amy"])
    decoded = {path.stem: tokenizer.decode(tokens) for path, tokens in dataset}
    assert decoded == {
        "Amy-snips-valid-0": "PLAY THE B-object SONG E-object",
        "Amy-snips-valid-1": "IN B-city NEW YORK E-city",
    }
    with pytest.raises(UserError, match="has no wav with a transcript of Emma"):
        SnipsDataset(["valid"], tokenizer, 1, path=tmp_path, valid_speakers=["Emma"])
