"""Log-mel energies in place of an encoder, as a baseline for recognisers."""

import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional as F

from upstream.config import SAMPLE_RATE, EncoderConfig
from upstream.encoder import EncoderOutput
from upstream.waveforms import as_batch, frame_mask

MELS, CONTEXT = 40, 12  # bands, and stacked frames on either side: those of the probes
FRAME, HOP = 400, 320  # samples; those of the encoders
WIDTH = MELS * (2 * CONTEXT + 1)


class LogMel(nn.Module):
    """As `SpeechEncoder`, on the same frames: each band normalised over an utterance, stacked with neighbouring frames.

    `config` describes its frames and width; it has no parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        self.config = EncoderConfig(
            WIDTH, 1, attention_heads=(None,), ffn_dims=(None,), head_dim=1, positional_groups=1
        )
        options = {"n_fft": FRAME, "hop_length": HOP, "n_mels": MELS, "center": False}
        self.mel = torchaudio.transforms.MelSpectrogram(SAMPLE_RATE, **options)

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> EncoderOutput:
        """(batch, sample), zero-padded, and (batch,) samples -> states of WIDTH channels; UserError as `as_batch`."""
        waveforms, lengths = as_batch(waveforms, lengths, next(self.buffers()), self.config.min_samples)
        frames = self.config.frame_count(lengths)
        with torch.autocast(waveforms.device.type, enabled=False):
            energies = torch.log(self.mel(waveforms) + 1e-6)  # (batch, mel, frame)
        valid = frame_mask(frames, energies.shape[2], energies.device)[:, None]  # (batch, 1, frame)
        count = valid.sum(dim=2, keepdim=True)
        centred = (energies - (energies * valid).sum(dim=2, keepdim=True) / count) * valid
        deviation = (centred.square().sum(dim=2, keepdim=True) / count).sqrt()
        normalised = F.pad(centred / (deviation + 1e-3), (CONTEXT, CONTEXT))
        states = normalised.unfold(2, 2 * CONTEXT + 1, 1).permute(0, 2, 3, 1).flatten(2)  # (batch, frame, channel)
        return EncoderOutput(states, [states], states, frames)
