"""Augmentation of the student's input: drawn from (seed, epoch, id) alone, at the levels asked for."""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from distiller.audio.batch import Batch
from distiller.audio.dataset import AudioDataset
from distiller.audio.decoding import Decoder
from distiller.augmentation.augmenter import Augmenter, open_augmenter
from distiller.augmentation.config import AugmentConfig
from distiller.common.strict import typed
from distiller.corpora.corpus import open_audio
from distiller.corpora.scanning import scan
from tests.distiller.audio.cuts import RATE, sampler

EFFECTS = ("speech", "noise", "reverberation", "band", "telephone", "gain")
HALF = {name: {"probability": 0.5} for name in EFFECTS}


def augmenter(effects: dict[str, Any], seed: int = 1, **rest: Any) -> Augmenter:
    made = open_augmenter(typed(AugmentConfig, effects | rest, "corpus.augment"), seed, open_audio)
    assert made is not None
    return made


def batch(lengths: tuple[int, ...] = (16_000, 12_000, 9000), epoch: int = 0) -> Batch:
    """Utterances of different levels, the first with silence in its second half."""
    waveforms = torch.zeros(len(lengths), max(lengths))
    for row, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(row)
        waveforms[row, :length] = 0.1 * (row + 1) * torch.randn(length, generator=generator)
    names = [f"u{row}" for row in range(len(lengths))]
    return Batch(waveforms, torch.tensor(lengths), names, names, [], (epoch, 0))


def added(effects: dict[str, Any], clean: Batch) -> torch.Tensor:
    heard = augmenter(effects)(clean)
    assert heard.waveforms is clean.waveforms
    return heard.heard - clean.waveforms


def snr(clean: torch.Tensor, noise: torch.Tensor) -> float:
    return float(10 * torch.log10(clean.square().mean() / noise.square().mean()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(18):
        noise = np.random.default_rng(index).normal(0, 0.1, int(RATE * (0.2 + 0.02 * index)))
        soundfile.write(tmp_path / f"{index:02d}.wav", noise, RATE)
    return tmp_path


def test_workers_and_resuming_change_nothing(folder: Path) -> None:
    cuts = scan(folder, folder)[0]

    def heard(augment: Augmenter | None, workers: int = 0, done: int = 0) -> list[Batch]:
        stream = sampler(cuts, batch_seconds=1.0, buckets=2)
        stream.start(0, done)
        dataset = AudioDataset(cuts, Decoder(400), 3, augment)
        return list(islice(DataLoader(dataset, sampler=stream, batch_size=None, num_workers=workers), 20 - done))

    clean, whole = heard(None), heard(augmenter(HALF))
    for same in (heard(augmenter(HALF), workers=2), [*whole[:5], *heard(augmenter(HALF), done=5)]):
        assert all(torch.equal(a.heard, b.heard) for a, b in zip(whole, same, strict=True))
    for untouched, degraded in zip(clean, whole, strict=True):
        assert untouched.degraded is None
        assert torch.equal(degraded.waveforms, untouched.waveforms)
        assert degraded.heard.isfinite().all()
        for row, length in zip(degraded.heard, degraded.lengths, strict=True):
            assert not row[length:].any()
    assert sum(not torch.equal(each.heard, each.waveforms) for each in whole) > 15
    epochs = {each.position[0] for each in whole}
    assert len(epochs) > 1


def test_each_seed_epoch_and_utterance_draws_anew() -> None:
    noise = {"noise": {"probability": 1.0}}
    first = augmenter(noise)(batch()).heard
    assert torch.equal(augmenter(noise)(batch()).heard, first)
    assert not torch.equal(augmenter(noise, seed=2)(batch()).heard, first)
    assert not torch.equal(augmenter(noise)(batch(epoch=1)).heard, first)
    same = replace(batch((9000, 9000)), waveforms=batch((9000, 9000)).waveforms[:1].repeat(2, 1))
    assert not torch.equal(*augmenter(noise)(same).heard)
    alone = replace(batch((16_000,)), ids=["u0"])
    assert torch.equal(augmenter(noise)(alone).heard[0], first[0])  # whatever else is in the batch


@pytest.mark.parametrize("level", [-5.0, 15.0])
def test_noise_is_as_far_below_speech_as_asked(level: float) -> None:
    clean = batch()
    noise = added({"noise": {"probability": 1.0, "snr": [level, level]}}, clean)
    for row, length in enumerate(clean.lengths):
        assert snr(clean.waveforms[row, :length], noise[row, :length]) == pytest.approx(level, abs=0.01)


def test_recorded_noise_is_used_and_repeated(tmp_path: Path) -> None:
    tone = 0.2 * np.sin(np.arange(4000) * 2 * np.pi * 1000 / RATE)
    soundfile.write(tmp_path / "tone.wav", tone, RATE)
    clean = batch((16_000, 12_000, 8000))
    noise = added({"noise": {"probability": 1.0, "snr": [5, 5], "path": str(tmp_path)}}, clean)
    for row, length in enumerate(clean.lengths):
        assert snr(clean.waveforms[row, :length], noise[row, :length]) == pytest.approx(5, abs=0.1)
        spectrum = torch.fft.rfft(noise[row, :length]).abs().square()
        assert spectrum[int(spectrum.argmax())] > 0.99 * spectrum.sum()
        assert int(spectrum.argmax()) == int(length) // 16


def test_recorded_impulse_responses_are_used(tmp_path: Path) -> None:
    response = np.zeros(1000)
    response[[300, 500]] = 0.8, 0.6
    soundfile.write(tmp_path / "room.flac", response, RATE)
    (tmp_path / "damaged.wav").write_bytes(b"")
    clean = batch()
    with pytest.warns(UserWarning, match="1 of 2 utterances"):
        heard = augmenter({"reverberation": {"probability": 1.0, "path": str(tmp_path)}})(clean).heard
    expected = 0.8 * clean.waveforms
    expected[:, 200:] += 0.6 * clean.waveforms[:, :-200]
    for row, length in enumerate(clean.lengths):
        assert torch.allclose(heard[row, :length], expected[row, :length], atol=1e-4)


def test_a_recording_that_has_gone_does_no_harm(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 8000), RATE)
    degrade = augmenter({"noise": {"probability": 1.0, "path": str(tmp_path)}})
    (tmp_path / "a.wav").unlink()
    assert degrade(batch()).heard.isfinite().all()


def test_other_voices_take_at_most_half_of_the_time() -> None:
    clean, shares = batch(), []
    for epoch in range(30):
        clean = replace(clean, position=(epoch, 0))
        voice = added({"speech": {"probability": 1.0, "snr": [3, 3]}}, clean)
        for row, length in enumerate(clean.lengths.tolist()):
            heard = voice[row, :length].nonzero()[:, 0]
            first, last = int(heard[0]), int(heard[-1]) + 1
            shares.append((last - first) / length)
            if last - first > 2000:
                assert snr(clean.waveforms[row, :length], voice[row, first:last]) == pytest.approx(3, abs=0.5)
    assert 0.09 < min(shares) < 0.2
    assert 0.45 < max(shares) <= 0.5


def test_an_utterance_alone_in_its_batch_has_no_other_voice() -> None:
    assert not added({"speech": {"probability": 1.0}}, batch((8000,))).any()


def test_effects_come_as_often_as_asked() -> None:
    clean, count = batch((4000,) * 5), 0
    for epoch in range(60):
        clean = replace(clean, position=(epoch, 0))
        count += int(added({"gain": {"probability": 0.3}}, clean).any(dim=1).sum())
    assert 60 < count < 120  # of 300


def test_the_teacher_may_hear_the_same() -> None:
    clean = batch()
    both = augmenter(HALF, teacher="augmented")(clean)
    assert both.degraded is None
    assert torch.equal(both.waveforms, augmenter(HALF)(clean).heard)


def test_an_empty_batch_stays_empty() -> None:
    empty = Batch(torch.zeros(0, 0), torch.zeros(0, dtype=torch.int64), [], [], [])
    assert augmenter(HALF)(empty).heard.shape == (0, 0)


def test_without_a_probability_there_is_nothing_to_do() -> None:
    unused = {"noise": {"path": "/does/not/exist"}}
    assert open_augmenter(typed(AugmentConfig, unused), 1, open_audio) is None
