"""What the fuzzing campaign (tests/campaigns/fuzz.py) broke once, each with the example that did it."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from distiller.audio.decoding import Decoder, Undecodable
from distiller.common.files import expanded
from distiller.corpora.config import CorpusConfig
from distiller.corpora.corpus import open_corpus
from distiller.corpora.scanning import scan
from distiller.distillation.plan import teacher_shape
from distiller.recipes.recipe import load_recipe
from upstream.errors import UserError

RECORDING = {
    "id": "r",
    "sources": [{"type": "file", "channels": [0], "source": "a.wav"}],
    "sampling_rate": 16_000,
    "num_samples": 16_000,
    "duration": 1.0,
    "channel_ids": [0],
}
CUT = {"id": "c", "start": 0.0, "duration": 1.0, "channel": 0, "supervisions": [], "type": "MonoCut"}

DECODER = Decoder(min_samples=400)


def noise(path: Path, samples: int = 16_000, rate: int = 16_000) -> Path:
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(samples), rate)
    return path


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("optimizer.betas=[[], 0]", r"optimizer\.betas is \[\[\], 0\], but it must be a list of 2"),
        ("optimizer.betas={a: 1}", r"optimizer\.betas is \{'a': 1\}, but it must be a list of 2"),
        ("objective.layer_map=[[1]]", r"objective\.layer_map is \[\[1\]\], but it must be a list with each"),
        ("corpus.subsets=[[a]]", r"corpus\.subsets is \[\['a'\]\], but it must be a list with each entry text"),
        ("student.name=[]", r"student\.name is \[\], but it must be one of narrow, pruned"),
        ("seed=!!int x", r"the value of seed=!!int x is not valid YAML \(invalid literal"),
        ("seed=" + "9" * 5000, r"is not valid YAML \(Exceeds the limit"),
        ("seed=\ud800", r"is not valid YAML \(.*special characters are not allowed"),
        ("seed=" + "[" * 5000, "the value of seed=.* is not valid YAML"),
    ],
)  # fmt: skip
def test_an_override_that_no_type_takes(override: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as raised:
        load_recipe("star", [override])
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize(
    "text", ["seed: !!int x", "seed: " + "9" * 5000, "a: " * 3000, "seed: &a [*a]", "student: {name: []}"]
)
def test_a_recipe_that_no_type_takes(text: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"extends: star\n{text}")
    with pytest.raises(UserError):
        load_recipe(tmp_path / "mine.yaml")


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {  # in the recording, in the cut, the reason
    "no id": ({"id": None}, {}, "recording has no id"),
    "id of a cut": ({}, {"id": 3}, "its id is 3"),
    "rate of zero": ({"sampling_rate": 0}, {}, "sampling_rate is 0"),
    "rate in words": ({"sampling_rate": "16k"}, {}, "sampling_rate is '16k'"),
    "samples in fractions": ({"num_samples": 0.5}, {}, "num_samples is 0.5"),
    "no duration": ({"duration": float("nan")}, {}, "recording's duration is nan"),
    "negative start": ({}, {"start": -1.0}, "its start is -1.0"),
    "endless": ({}, {"duration": float("inf")}, "its duration is inf"),
    "channel in words": ({}, {"channel": "left"}, "its channel is 'left'"),
    "no sources": ({"sources": []}, {}, "no audio source"),
    "source that is no path": (
        {"sources": [{"type": "file", "channels": [0], "source": "a\0.wav"}]}, {}, "no audio source",
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_an_entry_of_a_manifest_that_cannot_be_is_set_aside(change: str, tmp_path: Path, monkeypatch: Any) -> None:
    recording, cut, reason = CHANGES[change]
    monkeypatch.chdir(tmp_path)
    noise(Path("a.wav"))
    good = [CUT | {"id": name, "recording": RECORDING} for name in "ab"]
    lines = [json.dumps(item) for item in [*good, CUT | cut | {"recording": RECORDING | recording}]]
    Path("m.jsonl").write_text("\n".join(lines))
    corpus = open_corpus(CorpusConfig(path="m.jsonl", max_skipped=1.0, validation_share=0.5), DECODER, Path("cache"))
    assert len(corpus.train) + len(corpus.validation) == 2
    (row,) = corpus.skipped
    assert reason in row.reason


def test_a_manifest_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").touch()
    with pytest.raises(UserError, match=r"not enough audio in .*: of 0 utterances"):
        open_corpus(CorpusConfig(path=str(tmp_path / "m.jsonl")), DECODER)


def test_a_list_that_lists_itself(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("other.txt")
    (tmp_path / "other.txt").write_text("list.txt")
    with pytest.raises(UserError, match=r"list .*list\.txt lists itself"):
        scan(tmp_path / "list.txt", tmp_path)


def test_a_list_of_files_is_read_like_their_folder(tmp_path: Path) -> None:
    """In threads, in its own order: one by one it took 50 ms a line."""
    names = [f"{number}.wav" for number in range(100)]
    content = noise(tmp_path / names[0], 4000).read_bytes()
    for name in names:
        (tmp_path / name).write_bytes(content)
    (tmp_path / "list.txt").write_text("\n".join([*reversed(names), "gone.wav"]))
    scan(tmp_path, tmp_path)
    start = time.monotonic()
    cuts, skipped = scan(tmp_path / "list.txt", tmp_path)
    assert time.monotonic() - start < 2.0
    assert [cut.id for cut in cuts] == names[::-1]
    assert [row.reason for row in skipped] == ["No such file or directory"]


def test_a_file_whose_name_breaks_the_line(tmp_path: Path) -> None:
    (tmp_path / "a\r\x1b[31m.wav").touch()
    with pytest.raises(UserError) as raised:
        open_corpus(CorpusConfig(path=str(tmp_path)), DECODER)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("rate", [1_048_573, 9_999_991])
def test_a_rate_that_shares_no_factor_with_ours_takes_little_memory(rate: int, tmp_path: Path) -> None:
    noise(tmp_path / "a.wav", rate // 30, rate)
    (cut,), _ = scan(tmp_path, tmp_path)
    if rate > 2**20:
        with pytest.raises(Undecodable, match=r"its sampling rate is 9999991 Hz, above 1048575 Hz"):
            DECODER.decode(cut)
    else:
        assert len(DECODER.decode(cut)) == pytest.approx(16_000 / 30, abs=1)


@pytest.mark.parametrize("name", ["~no-such-user/x", "~\0", "\0"])
def test_a_path_that_cannot_be(name: str) -> None:
    assert expanded(name) == Path(name)
    with pytest.raises(UserError, match="does not exist"):
        open_corpus(CorpusConfig(path=name), DECODER)


@pytest.mark.parametrize(
    ("text", "sentence"), [("[1]", "contains a list, but it must contain keys"), ("[" * 10**5, "not JSON")]
)
def test_a_teacher_whose_configuration_is_none(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=sentence):
        teacher_shape(str(tmp_path))
