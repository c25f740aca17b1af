"""Whisper's front end: a log-mel spectrogram and two convolutions over its columns."""

import functools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import MEL_HOP, MEL_WINDOW, SAMPLE_RATE, EncoderConfig

DYNAMIC_RANGE = 8.0  # of a wav's energies, as a power of ten: lower ones are raised to the floor
CONTEXT_FRAMES = 2  # frames beyond a wav's end that its frames see: half a window, and a tap of each convolution


class LogMelExtractor(nn.Module):
    """Waveforms to the output of the convolutions, as if each wav had been padded with zeros to the longest one.

    The spectrogram and the convolutions of a wav's frames do not see more than `CONTEXT_FRAMES` beyond its end, so they
    are exact however few zeros follow. How attention treats the padding is up to the encoder.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        (channels, kernel, _), (width, _, stride) = config.conv_layers
        self.conv1 = nn.Conv1d(config.mel_bins, channels, kernel, padding=1)
        self.conv2 = nn.Conv1d(channels, width, kernel, stride=stride, padding=1)
        self.hop, self.max_frames = config.samples_per_frame, config.max_frames
        self.mel_bins, self.padded = config.mel_bins, config.attends_to_padding

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(batch, sample), zeros after each wav -> (batch, frame, channel): all max_frames, or those of the batch."""
        frames = -(-waveforms.shape[1] // self.hop)
        computed = self.max_frames if self.padded else min(frames + CONTEXT_FRAMES, self.max_frames)
        waveforms = F.pad(waveforms, (0, computed * self.hop - waveforms.shape[1]))
        columns = log_mel(waveforms, self.mel_bins).to(self.conv1.weight.dtype)
        features = F.gelu(self.conv2(F.gelu(self.conv1(columns))))
        return features.transpose(1, 2)[:, : self.max_frames if self.padded else frames]


def log_mel(waveforms: Tensor, bins: int) -> Tensor:
    """Whisper's log-mel spectrogram, (batch, sample) -> (batch, bin, column), a column every 160 samples, in fp32.

    Column k covers the samples around 160 k; the wav is mirrored before its first sample. As `WhisperFeatureExtractor`
    of `transformers`: the largest energy of each wav bounds the others from below.
    """
    waveforms = waveforms.to(torch.promote_types(waveforms.dtype, torch.float32))
    with torch.autocast(waveforms.device.type, enabled=False):
        window = torch.hann_window(MEL_WINDOW, dtype=waveforms.dtype, device=waveforms.device)
        spectra = torch.stft(waveforms, MEL_WINDOW, MEL_HOP, window=window, return_complex=True)[..., :-1]
        filters = _kept_filters(bins, waveforms.device, waveforms.dtype)
        energies = (filters @ spectra.abs().square()).clamp(min=1e-10).log10()
        floor = energies.amax(dim=(1, 2), keepdim=True) - DYNAMIC_RANGE
        return (torch.maximum(energies, floor) + 4.0) / 4.0


def mel_filters(bins: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Triangles on Slaney's mel scale up to 8 kHz, each of unit area: (bin, frequency)."""
    edges = _hertz(torch.linspace(0.0, _mel(SAMPLE_RATE / 2), bins + 2, dtype=torch.float64))
    frequencies = torch.linspace(0.0, SAMPLE_RATE / 2, MEL_WINDOW // 2 + 1, dtype=torch.float64)
    slopes = edges[:, None] - frequencies  # (edge, frequency)
    widths = edges.diff()[:, None]
    rising, falling = -slopes[:-2] / widths[:-1], slopes[2:] / widths[1:]
    triangles = torch.minimum(rising, falling).clamp(min=0.0)
    return (triangles * (2.0 / (edges[2:] - edges[:-2]))[:, None]).to(device, dtype)


_kept_filters = functools.lru_cache(maxsize=8)(mel_filters)


# Slaney's scale: linear up to 1 kHz, which is 15 mel, then 27 mel for a factor of 6.4
def _mel(hertz: float) -> float:
    return 15.0 + math.log(hertz / 1000.0) * 27.0 / math.log(6.4) if hertz >= 1000.0 else hertz * 3.0 / 200.0


def _hertz(mel: Tensor) -> Tensor:
    return torch.where(mel >= 15.0, 1000.0 * torch.exp((mel - 15.0) * math.log(6.4) / 27.0), mel * 200.0 / 3.0)
