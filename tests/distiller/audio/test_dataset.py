"""Windows: their order, their place in an epoch, their share among ranks, and the audio in them."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import soundfile
import torch
from lhotse import AudioSource, CutSet, Recording
from torch.utils.data import DataLoader

from distiller.audio.dataset import AudioDataset, validation_batches
from distiller.audio.sampler import StepBatchPlan, StepBatchSampler, step_batches_per_epoch
from distiller.corpora.scanning import scan
from upstream.errors import UserError

RATE = 16_000


def imaginary(count=300, low=1.0, high=8.0):
    """Cuts without files: sampling must not need them."""
    lengths = np.random.default_rng(1).integers(int(low * RATE), int(high * RATE), count)
    return CutSet.from_cuts(
        Recording(
            f"u{i:03d}", [AudioSource("file", [0], f"/none/{i}.wav")], RATE, int(length), float(length / RATE)
        ).to_cut()
        for i, length in enumerate(lengths)
    )


def sampler(cuts=None, **change):
    arguments = {"batch_seconds": 20.0, "buckets": 5, "seed": 3} | change
    return StepBatchSampler(imaginary() if cuts is None else cuts, **arguments)


def plain(plans):
    return [(plan.epoch, plan.index, [[cut.id for cut in batch] for batch in plan.batches]) for plan in plans]


def epoch_of(stream, epoch=0):
    return [[[cut.id for cut in batch] for batch in window] for window in stream.windows(epoch)]


def test_an_epoch_has_every_utterance_once():
    drawn = Counter(name for window in epoch_of(sampler()) for batch in window for name in batch)
    assert drawn == Counter(cut.id for cut in imaginary())


def test_batches_keep_to_the_cap_and_are_nearly_full():
    cuts = {cut.id: cut.duration for cut in imaginary(1000)}
    stream = sampler(imaginary(1000), batch_seconds=60.0, buckets=20)
    batches = [batch for window in epoch_of(stream) for batch in window]
    padded = np.array([len(batch) * max(cuts[name] for name in batch) for batch in batches])
    assert padded.max() <= 60.0
    assert np.median(padded) > 54.0


def test_utterances_of_a_batch_are_of_like_length():
    cuts = {cut.id: cut.duration for cut in imaginary(1000)}
    padded = sum(
        len(batch) * max(cuts[name] for name in batch)
        for window in epoch_of(sampler(imaginary(1000)))
        for batch in window
    )
    assert sum(cuts.values()) / padded > 0.85  # a random order has 0.64


def test_the_order_is_a_function_of_seed_and_epoch():
    assert plain(islice(sampler(), 80)) == plain(islice(sampler(), 80))
    first, second = epoch_of(sampler(), 0), epoch_of(sampler(), 1)
    assert first != second
    assert epoch_of(sampler(seed=4), 0) not in (first, second)  # a seed is no shifted epoch
    stream = sampler()
    list(stream.windows(0))
    assert epoch_of(stream, 1) == second  # whatever was drawn before


def test_the_stream_is_endless_and_knows_its_place():
    stream = sampler()
    lengths = [len(epoch_of(stream, epoch)) for epoch in range(3)]
    plans = list(islice(stream, sum(lengths)))
    expected = [(epoch, index) for epoch in range(3) for index in range(lengths[epoch])]
    assert [(plan.epoch, plan.index) for plan in plans] == expected
    assert step_batches_per_epoch(stream) == lengths[0]


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_resumed_stream_is_the_rest_of_the_stream(accumulate, rank):
    settings = {"accumulate": accumulate, "rank": rank, "world_size": 2}
    whole = plain(islice(sampler(**settings), 60))
    for at in (1, 17, 30, 59):
        epoch, index, _ = whole[at]
        stream = sampler(**settings)
        stream.start(epoch, index)
        assert plain(islice(stream, 60 - at)) == whole[at:]
    last = step_batches_per_epoch(sampler(**settings))
    stream = sampler(**settings)
    stream.start(0, last)  # the epoch is done
    assert plain(islice(stream, 1)) == whole[last : last + 1]


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_an_epoch(world_size):
    ranks = [epoch_of(sampler(rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert len({len(windows) for windows in ranks}) == 1  # no rank waits for another
    drawn = Counter(name for windows in ranks for window in windows for batch in window for name in batch)
    repeated = [name for name in drawn if "_dup" in name]
    assert len(repeated) < world_size
    assert Counter({name: count for name, count in drawn.items() if name not in repeated}) == Counter(
        cut.id for cut in imaginary()
    )


def test_fewer_utterances_than_ranks_are_repeated():
    ranks = [epoch_of(sampler(imaginary(3), rank=rank, world_size=4)) for rank in range(4)]
    assert [len(windows) for windows in ranks] == [1] * 4
    assert all(len(windows[0][0]) == 1 for windows in ranks)


def test_accumulation_leaves_out_less_than_a_window():
    single, windows = epoch_of(sampler()), epoch_of(sampler(accumulate=4))
    assert all(len(window) == 4 for window in windows)
    batches = [batch for window in windows for batch in window]
    assert batches == [window[0] for window in single][: len(batches)]
    assert 0 <= len(single) - len(batches) < 4


def test_too_few_batches_for_a_window():
    with pytest.raises(UserError, match=r"makes 2 batches a device, fewer than trainer.accumulate \(8\)"):
        next(iter(sampler(imaginary(4, low=4.0), accumulate=8, buckets=1)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("count", "buckets"), [(1, 20), (2, 2), (7, 20), (300, 1)])
def test_any_number_of_buckets(count, buckets):
    drawn = Counter(
        name for window in epoch_of(sampler(imaginary(count), buckets=buckets)) for batch in window for name in batch
    )
    assert len(drawn) == count


@pytest.mark.filterwarnings("error")
def test_an_utterance_longer_than_a_batch_comes_alone():
    cuts = CutSet.from_cuts([*imaginary(20), *imaginary(1, low=30.0, high=31.0).modify_ids(lambda _: "long")])
    batches = [batch for window in epoch_of(sampler(cuts)) for batch in window]
    assert ["long"] in batches


def test_sampling_leaves_the_cuts_as_they_were():
    cuts = imaginary(20)
    cuts[0].custom = {"span": 1}
    list(sampler(cuts).windows(0))
    assert [cut.custom for cut in cuts] == [{"span": 1}] + [None] * 19


# --- with audio


@pytest.fixture
def folder(tmp_path):
    """24 noises of 0.2 to 0.6 s at 8, 16 and 44.1 kHz."""
    for i in range(24):
        rate = (8000, 16_000, 44_100)[i % 3]
        noise = np.random.default_rng(i).normal(0, 0.1, (int(rate * (0.2 + 0.4 * i / 24)), 1 + i % 2))
        soundfile.write(tmp_path / f"{i:02d}.wav", noise, rate)
    return tmp_path


def opened(folder):
    return CutSet.from_cuts(scan(folder, folder)[0])


def drawn(cuts, count, workers=0, **change):
    stream = sampler(cuts, **({"batch_seconds": 2.0, "buckets": 3, "accumulate": 2} | change))
    loader = DataLoader(AudioDataset(cuts, seed=3), sampler=stream, batch_size=None, num_workers=workers)
    return list(islice(loader, count))


def assert_same(windows, others):
    for window, other in zip(windows, others, strict=True):
        assert (window.epoch, window.index) == (other.epoch, other.index)
        for batch, same in zip(window.batches, other.batches, strict=True):
            assert torch.equal(batch.waveforms, same.waveforms)
            assert torch.equal(batch.lengths, same.lengths)
            assert (batch.ids, batch.paths, batch.skipped) == (same.ids, same.paths, same.skipped)


def test_batches_are_padded_audio(folder):
    (window,) = drawn(opened(folder), 1)
    assert len(window.batches) == 2
    for batch in window.batches:
        assert batch.waveforms.dtype == torch.float32
        assert batch.lengths.dtype == torch.int64
        assert batch.waveforms.shape == (len(batch.ids), batch.lengths.max())
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
    windows = drawn(cuts, 8)
    assert_same(drawn(cuts, 8, workers=2), windows)
    batches = [batch for window in windows if window.epoch == 0 for batch in window.batches]
    skipped = [row for batch in batches for row in batch.skipped]
    assert set(skipped) <= {(str(folder / name), "Format not recognised.") for name in ("03.wav", "11.wav")}
    assert skipped
    assert not {"03.wav", "11.wav"} & {name for batch in batches for name in batch.ids}


def test_an_empty_batch_is_replaced_the_same_way_every_time(folder):
    cuts = opened(folder)
    damage(folder, [f"{i:02d}.wav" for i in range(24) if i not in (5, 17)])
    one_each = {"batch_seconds": 0.61, "accumulate": 1}
    windows = drawn(cuts, 20, **one_each)
    assert_same(windows, drawn(cuts, 20, workers=2, **one_each))
    assert all(set(batch.ids) <= {"05.wav", "17.wav"} for window in windows for batch in window.batches)
    names = [window.batches[0].ids for window in windows]
    assert ["05.wav"] in names
    assert ["17.wav"] in names
    replaced = [window.batches[0] for window in windows if window.batches[0].skipped]
    assert len(replaced) > 10


def test_ranks_draw_different_replacements(folder):
    cuts = opened(folder)
    damage(folder, ["00.wav"])
    dataset = AudioDataset(cuts, seed=3)
    broken = CutSet.from_cuts([cuts[0]])
    ids = [dataset[StepBatchPlan([broken], epoch=0, index=0, rank=rank)].batches[0].ids for rank in range(8)]
    assert len({tuple(names) for names in ids}) > 2
    assert all(len(names) == 1 for names in ids)


def test_a_batch_that_nothing_can_replace_is_empty(folder):
    cuts = opened(folder)
    damage(folder, [f"{i:02d}.wav" for i in range(24)])
    (window,) = drawn(cuts, 1, accumulate=1)
    (batch,) = window.batches
    assert (batch.ids, batch.waveforms.shape, batch.lengths.shape) == ([], (0, 0), (0,))
    assert len(batch.skipped) > 20


def test_windows_move_whole(folder):
    (window,) = drawn(opened(folder), 1)
    moved = window.to("meta")
    assert (moved.epoch, moved.index) == (0, 0)
    assert [batch.waveforms.device.type for batch in moved.batches] == ["meta"] * len(window.batches)
    assert [batch.lengths.device.type for batch in moved.batches] == ["cpu"] * len(window.batches)
    assert moved.batches[0].ids == window.batches[0].ids


def test_validation_batches_are_the_same_each_time(folder):
    cuts = opened(folder)
    loads = validation_batches(cuts, batch_seconds=2.0)
    first, second = [load() for load in loads], [load() for load in reversed(loads)][::-1]
    names = [name for batch in first for name in batch.ids]
    assert sorted(names) == sorted(cut.id for cut in cuts)
    assert [batch.ids for batch in first] == [batch.ids for batch in second]
    assert all(torch.equal(a.waveforms, b.waveforms) for a, b in zip(first, second, strict=True))
    assert all(batch.waveforms.numel() <= 2.0 * RATE for batch in first)
    assert len(first) < 8  # they are packed


def test_broken_validation_audio(folder):
    cuts = opened(folder)
    loads = validation_batches(cuts, batch_seconds=2.0)
    damage(folder, ["00.wav"])
    assert sum(len(load().ids) for load in loads) == 23
    damage(folder, [f"{i:02d}.wav" for i in range(24)])
    with pytest.raises(UserError, match="audio to validate or to compare on cannot be read"):
        loads[0]()
