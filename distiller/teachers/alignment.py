"""Which frames of teacher and student are compared if their numbers of frames differ."""

from dataclasses import replace

import torch
from torch import Tensor

from upstream.encoder import EncoderOutput, frame_mask


def aligned(*outputs: EncoderOutput) -> tuple[EncoderOutput, ...]:
    """Outputs for the same audio, cut to the frames that all have: frame t of one corresponds to frame t of the others.

    Frames of all encoders are 20 ms apart. Those of a convolutional front end are centred 12.5 ms after t x 20 ms (200
    samples: the middle of 400), Whisper's at t x 20 ms, so that a wav of n samples has ceil(n / 320) of Whisper's and
    one or two fewer of the others. Attention to frames that some of them lack, including the padding of a Whisper
    teacher, is removed from the maps, whose rows are renormalised to sum 1. Outputs with the same frames are returned
    unchanged.
    """
    counts = torch.stack([output.frame_lengths for output in outputs])  # (output, batch)
    lengths = counts.amin(dim=0)
    if bool((counts == lengths).all()):
        return outputs
    frames = min(output.projected.shape[1] for output in outputs)
    mask = frame_mask(lengths, frames, outputs[0].projected.device)
    return tuple(_cut(output, lengths, mask) for output in outputs)


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
