"""Negative controls: a student shown the wrong teacher states must learn nothing of the right ones."""

from dataclasses import replace

import torch
from torch import Tensor

from upstream.encoder import EncoderOutput

CONTROLS = ("none", "reversed", "shuffled")


def apply_negative_control(teacher: EncoderOutput, control: str) -> EncoderOutput:
    """The teacher's output with its states moved where they do not belong.

    Args:
        control: "reversed": each utterance's states in reverse order of time; "shuffled": those of the batch's next
            utterance, repeated or cut to the length. Of a batch of one, "shuffled" takes the states half a length away.
    """
    lengths = teacher.frame_lengths.to(teacher.projected.device, non_blocking=True)
    frames = torch.arange(teacher.projected.shape[1], device=lengths.device)
    rows = torch.arange(len(lengths), device=lengths.device)
    if control == "reversed":
        moved = (lengths[:, None] - 1 - frames).clamp(min=0)  # (batch, frame)
    elif len(lengths) > 1:
        rows = rows.roll(1)
        moved = frames % lengths[rows][:, None]
    else:
        moved = (frames + lengths[:, None] // 2) % lengths[:, None]

    def move(states: Tensor) -> Tensor:  # (batch, frame, channel)
        return states[rows[:, None], moved]

    def move_map(attention: Tensor | None) -> Tensor | None:  # (batch, head, query, key)
        if attention is None:
            return None
        by_query = attention[rows[:, None], :, moved]  # (batch, query, head, key)
        index = moved[:, None, None].expand(*by_query.shape[:3], -1)
        return by_query.gather(3, index).transpose(1, 2)

    return replace(
        teacher,
        projected=move(teacher.projected),
        hidden_states=[move(states) for states in teacher.hidden_states],
        last_hidden_state=move(teacher.last_hidden_state),
        attention_maps=None if teacher.attention_maps is None else [move_map(one) for one in teacher.attention_maps],
    )
