"""Which frames of teacher and student are compared, where they do not have equally many."""

from dataclasses import replace

import torch
from torch import Tensor

from upstream.encoder import EncoderOutput, frame_mask


def aligned(teacher: EncoderOutput, student: EncoderOutput) -> tuple[EncoderOutput, EncoderOutput]:
    """Both outputs, cut to the frames that both have: frame t of one meets frame t of the other, from the first on.

    Frames of all encoders are 20 ms apart. Those of a convolutional front end are centred 12.5 ms after t x 20 ms (200
    samples: the middle of 400), Whisper's at t x 20 ms, so that a wav of n samples has ceil(n / 320) of Whisper's and
    one or two fewer of the others. Attention to frames that only one of them has, the padding of Whisper's teacher
    among them, is taken out of the maps, whose rows again have the sum 1. Outputs with the same frames stay what they
    were.
    """
    if teacher.frame_lengths.tolist() == student.frame_lengths.tolist():
        return teacher, student
    frames = min(teacher.projected.shape[1], student.projected.shape[1])
    lengths = torch.minimum(teacher.frame_lengths, student.frame_lengths)
    mask = frame_mask(lengths, frames, student.projected.device)
    return _cut(teacher, lengths, mask), _cut(student, lengths, mask)


def _cut(output: EncoderOutput, lengths: Tensor, mask: Tensor) -> EncoderOutput:
    cut = output.cut(mask.shape[1])
    maps = cut.attention_maps and [_within(part, mask) for part in cut.attention_maps]
    return replace(cut, frame_lengths=lengths, attention_maps=maps)


def _within(attention: Tensor | None, mask: Tensor) -> Tensor | None:
    """Attention (batch, head, query, key) to the frames of `mask` (batch, key) only, with rows of sum 1."""
    if attention is None:
        return None
    attention = attention * mask[:, None, None]
    return attention / attention.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(attention.dtype).tiny)
