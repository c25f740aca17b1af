"""Batches: what moves to a device, and what an empty one says."""

import pytest
import torch

from distiller.audio.batch import Batch, StepBatch
from distiller.audio.skipped import Skipped
from upstream.errors import UserError

SKIPPED = [Skipped("a.wav", "first"), Skipped("b.wav", "why")]


def batch(utterances: int) -> Batch:
    ids = [f"u{index}" for index in range(utterances)]
    return Batch(torch.zeros(utterances, 400), torch.full((utterances,), 400), ids, ids, SKIPPED)


def test_waveforms_move_and_lengths_stay_on_the_cpu() -> None:
    step = StepBatch([batch(2), batch(3)], epoch=4, index=5)
    moved = step.to("meta")
    assert (moved.epoch, moved.index) == (4, 5)
    assert [each.waveforms.device.type for each in moved.batches] == ["meta"] * 2
    assert [each.lengths.tolist() for each in moved.batches] == [[400] * 2, [400] * 3]
    assert [each.ids for each in moved.batches] == [each.ids for each in step.batches]


def test_a_step_knows_its_utterances_and_skipped_files() -> None:
    step = StepBatch([batch(2), batch(3)], epoch=0, index=0)
    assert (step.utterances, step.skipped) == (5, SKIPPED * 2)


def test_an_empty_batch_is_an_error() -> None:
    assert batch(1).require_audio().ids == ["u0"]
    with pytest.raises(UserError) as error:
        batch(0).require_audio()
    assert str(error.value) == "none of the 2 utterances tried for a batch could be decoded, the last is b.wav (why)"
