"""Teacher and student whose frames are not equally many, as with Whisper: which of them are compared."""

from dataclasses import fields, replace

import torch
from torch import Tensor

from distiller.teachers.alignment import aligned
from tests.distiller.objectives.outputs import ALL_TERMS, frame_mask_of, random_output, star
from upstream.encoder import EncoderOutput

TEACHER_FRAMES, STUDENT_FRAMES = (9, 7), (8, 5)


def pair() -> tuple[EncoderOutput, EncoderOutput]:
    """Outputs for a batch of two: the teacher has one and two frames more."""
    return random_output(0, 10, 2, frame_mask_of(*TEACHER_FRAMES)), random_output(
        9, 6, 3, frame_mask_of(*STUDENT_FRAMES)
    )


def loss(teacher: EncoderOutput, student: EncoderOutput) -> Tensor:
    terms = star(**ALL_TERMS)(teacher, student, student.frame_mask())
    return torch.stack([term.total for term in terms])


def test_equal_frames_are_left_as_they_are() -> None:
    mask = frame_mask_of(*STUDENT_FRAMES)
    teacher, student = random_output(0, 10, 2, mask), random_output(9, 6, 3, mask)
    assert aligned(teacher, student)[0] is teacher
    assert aligned(teacher, student)[1] is student


def test_frame_t_meets_frame_t_on_the_frames_that_both_have() -> None:
    before = pair()
    for outputs, swapped in ((aligned(*before), before), (aligned(*before[::-1]), before[::-1])):
        for output, original in zip(outputs, swapped, strict=True):
            assert output.frame_lengths.tolist() == list(STUDENT_FRAMES)
            assert torch.equal(output.projected, original.projected[:, :8])
            assert torch.equal(output.last_hidden_state, original.last_hidden_state[:, :8])
            for states, whole in zip(output.hidden_states, original.hidden_states, strict=True):
                assert torch.equal(states, whole[:, :8])


def test_attention_to_other_frames_is_taken_out() -> None:
    before, (teacher, student) = pair(), aligned(*pair())
    for output, original in ((teacher, before[0]), (student, before[1])):
        assert output.attention_maps is not None
        assert original.attention_maps is not None
        for maps, whole in zip(output.attention_maps, original.attention_maps, strict=True):
            assert maps is not None
            assert whole is not None
            torch.testing.assert_close(maps[:, :, :5].sum(-1), torch.ones_like(maps[:, :, :5, 0]))
            kept = whole[1, :, :5, :5]  # of the second wav, of which both have five frames
            torch.testing.assert_close(maps[1, :, :5, :5], kept / kept.sum(-1, keepdim=True))
            assert not maps[1, :, :, 5:].any()
    without = [replace(output, attention_maps=None) for output in pair()]
    assert [output.attention_maps for output in aligned(*without)] == [None, None]


def test_frames_that_only_the_teacher_has_are_not_in_the_loss() -> None:
    teacher, student = pair()
    expected = loss(*aligned(teacher, student))
    for row, frames in enumerate(STUDENT_FRAMES):
        for states in (teacher.projected, *teacher.hidden_states):
            states[row, frames:] = 1e3
    torch.testing.assert_close(loss(*aligned(teacher, student)), expected)
    assert {field.name for field in fields(EncoderOutput)} == set(vars(teacher))
