"""The output of an encoder."""

from dataclasses import dataclass

from torch import Tensor

from .waveforms import frame_mask


@dataclass
class EncoderOutput:
    """An encoder's output for a batch. Values of padded frames are finite and arbitrary."""

    projected: Tensor  # P: the feature projection's output, (batch, frame, channel)
    hidden_states: list[Tensor]  # F^0..F^L, each (batch, frame, channel)
    last_hidden_state: Tensor  # F^L, after the final norm in pre-LN models
    frame_lengths: Tensor  # (batch,) valid frames, on the CPU
    attention_maps: list[Tensor | None] | None = None  # A^1..A^L, (batch, head, query, key); None: layer without it

    def frame_mask(self) -> Tensor:
        """True at valid frames: (batch, frame), on the device of the states."""
        return frame_mask(self.frame_lengths, self.projected.shape[1], self.projected.device)

    def valid_frames(self) -> Tensor:
        """Indices of the valid frames in states.flatten(0, 1), on their device.

        Indexing with `frame_mask` would wait for the GPU to learn the number of valid frames.
        """
        mask = frame_mask(self.frame_lengths, self.projected.shape[1])
        return mask.flatten().nonzero()[:, 0].to(self.projected.device, non_blocking=True)

    def cut(self, frames: int | None = None) -> "EncoderOutput":
        """The first `frames` frames of the batch, by default those of its longest wav."""
        frames = int(self.frame_lengths.max()) if frames is None else frames
        maps = self.attention_maps
        return EncoderOutput(
            projected=self.projected[:, :frames],
            hidden_states=[states[:, :frames] for states in self.hidden_states],
            last_hidden_state=self.last_hidden_state[:, :frames],
            frame_lengths=self.frame_lengths.clamp(max=frames),
            attention_maps=maps and [None if part is None else part[:, :, :frames, :frames] for part in maps],
        )

    def layer(self, index: int, layer_zero: str = "feature_projection") -> Tensor:
        """F^index, (batch, frame, channel); layer 0 is P ("feature_projection") or F^0 ("transformer_input")."""
        return self.projected if index == 0 and layer_zero == "feature_projection" else self.hidden_states[index]
