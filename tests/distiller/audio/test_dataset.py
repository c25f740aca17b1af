"""The audio of step batches: padded, the same for any number of workers, replaced where it cannot be decoded."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from distiller.audio.batch import step_batches_of
from distiller.audio.dataset import AudioDataset, validation_batches
from distiller.audio.decoding import Decoder
from distiller.audio.sampler import BatchPlan
from distiller.corpora.scanning import scan
from tests.distiller.audio.cuts import RATE, sampler
from upstream.errors import UserError

DECODER = Decoder(min_samples=400)


@pytest.fixture
def folder(tmp_path):
    """24 noises of 0.2 to 0.6 s at 8, 16 and 44.1 kHz."""
    for i in range(24):
        rate = (8000, 16_000, 44_100)[i % 3]
        noise = np.random.default_rng(i).normal(0, 0.1, (int(rate * (0.2 + 0.4 * i / 24)), 1 + i % 2))
        soundfile.write(tmp_path / f"{i:02d}.wav", noise, rate)
    return tmp_path


def opened(folder):
    return scan(folder, folder)[0]


def drawn(cuts, count, workers=0, **change):
    stream = sampler(cuts, **({"batch_seconds": 2.0, "buckets": 3, "accumulate": 2} | change))
    loader = DataLoader(AudioDataset(cuts, DECODER, seed=3), sampler=stream, batch_size=None, num_workers=workers)
    return list(islice(step_batches_of(loader, stream.accumulate), count))


def assert_same(steps, others):
    for step, other in zip(steps, others, strict=True):
        assert (step.epoch, step.index) == (other.epoch, other.index)
        for batch, same in zip(step.batches, other.batches, strict=True):
            assert torch.equal(batch.waveforms, same.waveforms)
            assert torch.equal(batch.lengths, same.lengths)
            assert (batch.ids, batch.paths, batch.skipped) == (same.ids, same.paths, same.skipped)


def test_batches_are_padded_audio(folder):
    (step,) = drawn(opened(folder), 1)
    assert len(step.batches) == 2
    for batch in step.batches:
        assert batch.waveforms.dtype == torch.float32
        assert batch.lengths.dtype == torch.int64
        assert len(batch.waveforms) == len(batch.ids)
        assert 0 <= batch.waveforms.shape[1] - batch.lengths.max() < 0.15 * RATE  # a bucket's longest
        assert batch.waveforms.shape[1] % 320 == 0
        assert batch.paths == [str(folder / name) for name in batch.ids]
        assert batch.skipped == []
        for waveform, length in zip(batch.waveforms, batch.lengths, strict=True):
            assert waveform[:length].abs().mean() > 0.03
            assert not waveform[length:].any()


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(folder, workers):
    assert_same(drawn(opened(folder), 12, workers), drawn(opened(folder), 12))


def damage(folder, names):
    for name in names:
        (folder / name).write_bytes(b"damaged")


def test_what_cannot_be_decoded_is_dropped_from_its_batch(folder):
    cuts = opened(folder)
    damage(folder, ["03.wav", "11.wav"])
    steps = drawn(cuts, 8)
    assert_same(drawn(cuts, 8, workers=2), steps)
    batches = [batch for step in steps if step.epoch == 0 for batch in step.batches]
    skipped = [row for batch in batches for row in batch.skipped]
    assert set(skipped) <= {(str(folder / name), "Format not recognised.") for name in ("03.wav", "11.wav")}
    assert skipped
    assert not {"03.wav", "11.wav"} & {name for batch in batches for name in batch.ids}


def test_an_empty_batch_is_replaced_the_same_way_every_time(folder):
    cuts = opened(folder)
    damage(folder, [f"{i:02d}.wav" for i in range(24) if i not in (5, 17)])
    one_each = {"batch_seconds": 0.61, "accumulate": 1}
    steps = drawn(cuts, 20, **one_each)
    assert_same(steps, drawn(cuts, 20, workers=2, **one_each))
    assert all(set(batch.ids) <= {"05.wav", "17.wav"} for step in steps for batch in step.batches)
    names = [step.batches[0].ids for step in steps]
    assert ["05.wav"] in names
    assert ["17.wav"] in names
    replaced = [step.batches[0] for step in steps if step.batches[0].skipped]
    assert len(replaced) > 10


def test_each_batch_draws_its_own_replacement(folder):
    cuts = opened(folder)
    damage(folder, ["00.wav"])
    dataset = AudioDataset(cuts, DECODER, seed=3)
    plan = BatchPlan(cuts[:1], samples=8000, epoch=0, index=0, part=0, rank=0)
    for change in ("rank", "part", "index", "epoch"):
        ids = [dataset[replace(plan, **{change: number})].ids for number in range(8)]
        assert len({tuple(names) for names in ids}) > 2
        assert all(len(names) == 1 for names in ids)


def test_a_batch_that_nothing_can_replace_is_empty(folder):
    cuts = opened(folder)
    damage(folder, [f"{i:02d}.wav" for i in range(24)])
    (step,) = drawn(cuts, 1, accumulate=1)
    (batch,) = step.batches
    assert (batch.ids, len(batch.waveforms), batch.lengths.shape) == ([], 0, (0,))
    assert len(batch.skipped) > 20


def test_validation_batches_are_the_same_each_time(folder):
    cuts = opened(folder)
    loads = validation_batches(cuts, 2.0, DECODER)
    first, second = [load() for load in loads], [load() for load in reversed(loads)][::-1]
    names = [name for batch in first for name in batch.ids]
    assert sorted(names) == sorted(cut.id for cut in cuts)
    assert [batch.ids for batch in first] == [batch.ids for batch in second]
    assert all(torch.equal(a.waveforms, b.waveforms) for a, b in zip(first, second, strict=True))
    assert all(batch.waveforms.numel() <= 2.0 * RATE for batch in first)
    assert len(first) < 8  # they are packed


def test_broken_validation_audio(folder):
    cuts = opened(folder)
    loads = validation_batches(cuts, 2.0, DECODER)
    damage(folder, ["00.wav"])
    assert sum(len(load().ids) for load in loads) == 23
    damage(folder, [f"{i:02d}.wav" for i in range(24)])
    with pytest.raises(
        UserError, match=r"none of the 2\d utterances tried for a batch could be decoded, the last is \S+wav"
    ):
        loads[0]()
