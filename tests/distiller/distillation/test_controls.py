import torch

from distiller.distillation.controls import apply_negative_control
from upstream.encoder import EncoderOutput

LENGTHS = [5, 3, 4]


def output() -> EncoderOutput:
    """States that say where they come from: row * 10 + frame; nothing valid is negative."""
    states = torch.full((3, 5, 1), -1.0)
    maps = torch.full((3, 2, 5, 5), -1.0)
    for row, length in enumerate(LENGTHS):
        states[row, :length, 0] = torch.arange(length) + 10.0 * row
        maps[row, :, :length, :length] = 100.0 * row + 10 * torch.arange(length)[:, None] + torch.arange(length)
    return EncoderOutput(states, [states, 2 * states], 2 * states, torch.tensor(LENGTHS), [maps, None])


def test_reversed_turns_every_utterance_around_in_its_own_length() -> None:
    moved = apply_negative_control(output(), "reversed")
    assert moved.hidden_states[0][0, :5, 0].tolist() == [4, 3, 2, 1, 0]
    assert moved.hidden_states[1][1, :3, 0].tolist() == [24, 22, 20]
    assert moved.attention_maps is not None
    assert moved.attention_maps[0][1, 0, 0, :3].tolist() == [122, 121, 120]  # query 2, keys 2, 1, 0
    assert moved.attention_maps[1] is None


def test_shuffled_gives_another_utterances_states_at_every_valid_frame() -> None:
    moved = apply_negative_control(output(), "shuffled")
    assert moved.projected[0, :5, 0].tolist() == [20, 21, 22, 23, 20]  # of the last row, repeated
    assert moved.projected[1, :3, 0].tolist() == [0, 1, 2]
    assert moved.projected[2, :4, 0].tolist() == [10, 11, 12, 10]
    assert moved.attention_maps is not None
    assert moved.attention_maps[0][2, 1, 3, :4].tolist() == [100, 101, 102, 100]


def test_shuffled_moves_a_lone_utterance_in_time() -> None:
    whole = output()
    lone = EncoderOutput(whole.projected[:1], [whole.projected[:1]], whole.projected[:1], torch.tensor([5]))
    assert apply_negative_control(lone, "shuffled").hidden_states[0][0, :, 0].tolist() == [2, 3, 4, 0, 1]
