"""Copies at other speeds, and several corpora in one prepared folder."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from distiller.audio.decoding import Decoder
from distiller.corpora.config import CorpusConfig
from distiller.corpora.corpus import open_audio, open_corpus
from distiller.corpus import main
from distiller.preparation.prepare import prepare, verify
from upstream.errors import UserError

DECODER = Decoder(min_samples=400)
RATE = 16_000


def tone(path: Path, hertz: float, seconds: float, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate), rate)
    return path


def loudest(samples: np.ndarray) -> float:
    """The frequency with most energy."""
    return float(np.abs(np.fft.rfft(samples * np.hanning(samples.size))).argmax() * RATE / samples.size)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for number in range(4):
        tone(tmp_path / f"corpus/{number}.wav", 400 + 100 * number, 0.5 + 0.1 * number)
    tone(tmp_path / "corpus/sub/odd.wav", 1000, 0.70001, rate=44_100)
    return tmp_path / "corpus"


def test_copies_are_faster_and_higher_or_slower_and_lower(corpus: Path, tmp_path: Path) -> None:
    made = prepare(corpus, tmp_path / "out", shard_seconds=1.5, speeds=[0.9, 1.0, 1.25])
    assert made == verify(tmp_path / "out")
    originals = {cut.id: cut for cut in open_audio(str(corpus), 9.0, DECODER)}
    stored = {cut.id: cut for cut in open_audio(str(tmp_path / "out"), 9.0, DECODER)}
    assert set(stored) == {f"{name}{suffix}" for name in originals for suffix in ("", "_sp0.9", "_sp1.25")}
    for name, original in originals.items():
        samples = DECODER.decode(original).numpy()
        same = DECODER.decode(stored[name]).numpy()
        assert np.abs(same - samples).max() <= 2**-16
        for speed in (0.9, 1.25):
            cut = stored[f"{name}_sp{speed}"]
            played = DECODER.decode(cut).numpy()
            assert abs(played.size - samples.size / speed) <= 0.5
            assert cut.duration == played.size / RATE
            assert loudest(played) == pytest.approx(loudest(samples) * speed, abs=4)
            assert np.sqrt(np.mean(played**2)) == pytest.approx(np.sqrt(np.mean(samples**2)), rel=0.02)


def test_names_and_lengths_are_those_of_lhotse(corpus: Path, tmp_path: Path) -> None:
    prepare(corpus, tmp_path / "out", speeds=[1.1])
    stored = open_audio(str(tmp_path / "out"), 9.0, DECODER)
    for cut in open_audio(str(corpus), 9.0, DECODER):
        if cut.sampling_rate == RATE:
            theirs = cut.perturb_speed(1.1)
            ours = next(one for one in stored if one.id == theirs.id)
            assert ours.num_samples == theirs.num_samples
            np.testing.assert_allclose(DECODER.decode(ours), theirs.load_audio()[0], atol=2**-15)


def test_copies_are_held_out_with_their_recording(corpus: Path, tmp_path: Path) -> None:
    prepare(corpus, tmp_path / "out", speeds=[0.9, 1.0, 1.1])
    files, stored = (
        open_corpus(CorpusConfig(str(path), validation_share=0.4), DECODER) for path in (corpus, tmp_path / "out")
    )
    assert {cut.id.partition("_sp")[0] for cut in stored.validation} == {cut.id for cut in files.validation}
    assert len(stored.validation) == 3 * len(files.validation)


def test_other_speeds_are_another_preparation(corpus: Path, tmp_path: Path) -> None:
    prepare(corpus, tmp_path / "out", speeds=[1.0])
    before = (tmp_path / "out/preparation.json").read_text()
    (tmp_path / "out/preparation.json").write_text(before.replace('"speeds"', '"of old folders"'))
    prepare(corpus, tmp_path / "out")
    with pytest.raises(UserError, match=r"was prepared with another speeds \(\[1.0\] against \[1.0, 1.1\]\)"):
        prepare(corpus, tmp_path / "out", speeds=[1.1, 1.0])


def test_a_damaged_shard_of_copies_is_replaced(corpus: Path, tmp_path: Path) -> None:
    made = prepare(corpus, tmp_path / "out", speeds=[0.9, 1.0])
    shard = tmp_path / "out/all/recording.000001.tar"
    before = shard.read_bytes()
    shard.write_bytes(before[:-5])
    assert prepare(corpus, tmp_path / "out", speeds=[1.0, 0.9]) == made
    assert shard.read_bytes() == before


def test_several_corpora_in_one_folder(corpus: Path, tmp_path: Path) -> None:
    other = tone(tmp_path / "other/more/a.wav", 500, 1).parents[1]
    made = prepare([corpus, other], tmp_path / "out", speeds=[1.0, 0.9])
    assert made.utterances == 12
    assert prepare([corpus, other], tmp_path / "out", speeds=[1.0, 0.9]) == made
    assert "more/a.wav_sp0.9" in {cut.id for cut in open_audio(str(tmp_path / "out"), 9.0, DECODER)}
    with pytest.raises(UserError, match="was prepared with another corpus"):
        prepare([other, corpus], tmp_path / "out", speeds=[1.0, 0.9])


def test_equal_ids_in_two_corpora_are_an_error(corpus: Path, tmp_path: Path) -> None:
    other = tone(tmp_path / "other/sub/odd.wav", 500, 1).parents[1]
    with pytest.raises(UserError, match=r"corpus and .*other both contain sub/odd.wav; rename it"):
        prepare([corpus, other], tmp_path / "out")
    with pytest.raises(UserError, match="must be a list of different corpora"):
        prepare([corpus, corpus], tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--speeds 0.9,3", "--speeds is 3.0, but it must be numbers from 0.5 to 2 with at most two decimals"),
        ("--speeds 0.999", "--speeds is 0.999"),
        ("--speeds nan", "--speeds is nan"),
        ("--speeds fast", "argument --speeds: invalid float list value: 'fast'"),
        ("other --subsets sub", "--subsets is ['sub'], but it must be left out with several corpora"),
    ],
)
def test_bad_options(corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], options: str, message: str):
    status = main(["prepare", str(corpus), *options.split(), f"--output={tmp_path}/out"])
    error = capfd.readouterr().err.strip().splitlines()
    assert status == 2
    assert message in error[-1]
    assert not (tmp_path / "out").exists()
