"""Negative controls: a student that is shown the wrong teacher states must not learn the right ones."""

from dataclasses import replace

import torch
from torch import Tensor

from upstream.encoder import EncoderOutput


def apply_negative_control(teacher: EncoderOutput, control: str) -> EncoderOutput:
    """The teacher's output with its states moved to the wrong frames.

    Args:
        control: "reversed": each utterance's states in reverse order of time; "shuffled": the states of the batch's
            next utterance, repeated or trimmed to the length; for a batch of one, the states half a length away.
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
        attention_maps=None
        if teacher.attention_maps is None
        else [move_map(attention) for attention in teacher.attention_maps],
    )
