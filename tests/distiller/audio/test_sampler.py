"""Which utterances make each optimiser step: their order, their place in an epoch, their share among ranks."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from distiller.audio.sampler import step_batches_per_epoch
from tests.distiller.audio.cuts import RATE, imaginary, sampler
from upstream.errors import UserError


def plain(plans):
    return [(plan.epoch, plan.index, plan.part, plan.samples, [cut.id for cut in plan.cuts]) for plan in plans]


def epoch_of(stream, epoch=0):
    return [[[cut.id for cut in batch] for batch in step] for step in stream.step_batches(epoch)]


def test_an_epoch_has_every_utterance_once():
    drawn = Counter(name for step in epoch_of(sampler()) for batch in step for name in batch)
    assert drawn == Counter(cut.id for cut in imaginary())


def test_batches_stay_below_the_cap_and_are_nearly_full():
    cuts = {cut.id: cut.duration for cut in imaginary(1000)}
    stream = sampler(imaginary(1000), batch_seconds=60.0, buckets=20)
    batches = [batch for step in epoch_of(stream) for batch in step]
    padded = np.array([len(batch) * max(cuts[name] for name in batch) for batch in batches])
    assert padded.max() <= 60.0
    assert np.median(padded) > 54.0


@pytest.mark.parametrize("world_size", [1, 3])
def test_an_epoch_has_few_shapes(world_size):
    """One of full batches for each bucket, and one for the last batch of each."""
    cuts = imaginary(1500)
    for rank in range(world_size):
        stream = sampler(cuts, batch_seconds=60.0, buckets=12, rank=rank, world_size=world_size)
        steps = step_batches_per_epoch(stream)
        shapes = Counter((len(plan.cuts), plan.samples) for plan in islice(stream, steps))
        widths = Counter(samples for _, samples in shapes)
        assert len(widths) <= 12
        assert max(widths.values()) <= 2
        full = {(max(count for count, width in shapes if width == samples), samples) for samples in widths}
        assert sum(shapes[shape] for shape in full) >= steps - 12
    longest = {cut.id: cut.duration * RATE for cut in cuts}
    for plan in islice(stream, steps):
        assert plan.samples >= max(longest[cut.id.split("_dup")[0]] for cut in plan.cuts)
        assert len(plan.cuts) * plan.samples <= 60.0 * RATE


def test_padding_to_the_buckets_longest_stays_below_the_cap():
    """Rounding up gives way to it."""
    cuts = imaginary(40, low=2.9, high=2.999)
    stream = sampler(cuts, batch_seconds=3 * max(cut.duration for cut in cuts) + 1e-4, buckets=1)
    plans = list(islice(stream, step_batches_per_epoch(stream)))
    assert {len(plan.cuts) for plan in plans} == {3, 1}
    (samples,) = {plan.samples for plan in plans}
    assert samples == max(cut.num_samples for cut in cuts)


def test_utterances_of_a_batch_have_similar_lengths():
    cuts = {cut.id: cut.duration for cut in imaginary(1000)}
    padded = sum(
        len(batch) * max(cuts[name] for name in batch) for step in epoch_of(sampler(imaginary(1000))) for batch in step
    )
    assert sum(cuts.values()) / padded > 0.85  # a random order has 0.64


def test_the_order_is_a_function_of_seed_and_epoch():
    assert plain(islice(sampler(), 80)) == plain(islice(sampler(), 80))
    first, second = epoch_of(sampler(), 0), epoch_of(sampler(), 1)
    assert first != second
    assert epoch_of(sampler(seed=4), 0) not in (first, second)  # another seed does not just shift the epochs
    stream = sampler()
    list(stream.step_batches(0))
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
    expected = plain(islice(sampler(**settings), 60))
    for at in (1, 17, 30, 59):
        epoch, index, part, *_ = expected[at]
        stream = sampler(**settings)
        stream.start(epoch, index)
        assert plain(islice(stream, 60 - at + part)) == expected[at - part :]
    last = step_batches_per_epoch(sampler(**settings))
    stream = sampler(**settings)
    stream.start(0, last)  # the epoch is done
    assert plain(islice(stream, 1)) == expected[last * accumulate : last * accumulate + 1]


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_an_epoch(world_size):
    ranks = [epoch_of(sampler(rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert len({len(steps) for steps in ranks}) == 1  # no rank waits for another
    drawn = Counter(name for steps in ranks for step in steps for batch in step for name in batch)
    repeated = [name for name in drawn if "_dup" in name]
    assert len(repeated) < world_size
    assert Counter({name: count for name, count in drawn.items() if name not in repeated}) == Counter(
        cut.id for cut in imaginary()
    )


def test_fewer_utterances_than_ranks_are_repeated():
    ranks = [epoch_of(sampler(imaginary(3), rank=rank, world_size=4)) for rank in range(4)]
    assert [len(steps) for steps in ranks] == [1] * 4
    assert all(len(steps[0][0]) == 1 for steps in ranks)


def test_accumulation_leaves_out_less_than_a_step():
    single, steps = epoch_of(sampler()), epoch_of(sampler(accumulate=4))
    assert all(len(step) == 4 for step in steps)
    batches = [batch for step in steps for batch in step]
    assert batches == [step[0] for step in single][: len(batches)]
    assert 0 <= len(single) - len(batches) < 4


def test_too_few_batches_for_a_step():
    with pytest.raises(UserError, match=r"gives only 2 batches per device, fewer than trainer.accumulate \(8\)"):
        next(iter(sampler(imaginary(4, low=4.0), accumulate=8, buckets=1)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("count", "buckets"), [(1, 20), (2, 2), (7, 20), (300, 1)])
def test_any_number_of_buckets(count, buckets):
    drawn = Counter(
        name for step in epoch_of(sampler(imaginary(count), buckets=buckets)) for batch in step for name in batch
    )
    assert len(drawn) == count


@pytest.mark.filterwarnings("error")
def test_an_utterance_longer_than_a_batch_is_a_batch_by_itself():
    cuts = [*imaginary(20), imaginary(1, low=30.0, high=31.0)[0].with_id("long")]
    batches = [batch for step in epoch_of(sampler(cuts)) for batch in step]
    assert ["long"] in batches


def test_sampling_leaves_the_cuts_as_they_were():
    cuts = imaginary(20)
    cuts[0].custom = {"span": 1}
    list(sampler(cuts).step_batches(0))
    assert [cut.custom for cut in cuts] == [{"span": 1}] + [None] * 19
