"""Batches: what moves to a device, which make a step, and what an empty one says."""

from dataclasses import replace
from itertools import count, islice

import pytest
import torch

from distiller.audio.batch import Batch, StepBatch, step_batches_of
from distiller.audio.skipped import Skipped
from upstream.errors import UserError

SKIPPED = [Skipped("a.wav", "first"), Skipped("b.wav", "why")]


def batch(utterances: int) -> Batch:
    ids = [f"u{index}" for index in range(utterances)]
    return Batch(torch.zeros(utterances, 400), torch.full((utterances,), 400), ids, ids, SKIPPED)


def test_waveforms_move_and_lengths_stay_on_the_cpu() -> None:
    moved = batch(2).to("meta")
    assert (moved.waveforms.device.type, moved.lengths.device.type) == ("meta", "cpu")
    assert (moved.lengths.tolist(), moved.ids) == ([400] * 2, ["u0", "u1"])


def test_what_the_student_hears_moves_too() -> None:
    clean = batch(2)
    assert clean.heard is clean.waveforms
    moved = replace(clean, degraded=torch.ones(2, 400)).to("meta")
    assert moved.heard is moved.degraded
    assert moved.heard.device.type == "meta"


def test_batches_are_collected_into_steps_as_they_come() -> None:
    """No batch is asked for before the step that it is part of."""
    taken: list[int] = []

    def stream():
        for number in count():
            taken.append(number)
            yield replace(batch(number % 4), position=(7, number // 3))

    steps = list(islice(step_batches_of(stream(), 3), 2))
    assert [(step.epoch, step.index) for step in steps] == [(7, 0), (7, 1)]
    assert [[len(each.ids) for each in step.batches] for step in steps] == [[0, 1, 2], [3, 0, 1]]
    assert taken == [*range(6)]


def test_a_step_knows_its_utterances_and_skipped_files() -> None:
    step = StepBatch([batch(2), batch(3)], epoch=0, index=0)
    assert (step.utterances, step.skipped) == (5, SKIPPED * 2)


def test_an_empty_batch_is_an_error() -> None:
    assert batch(1).require_audio().ids == ["u0"]
    with pytest.raises(UserError) as error:
        batch(0).require_audio()
    assert str(error.value) == "none of the 2 utterances tried for a batch could be decoded, the last is b.wav (why)"
