"""A log-mel front end with the frames of HuBERT's convolutions: cheaper, with few learned parameters.

Columns of 25 ms every 10 ms, then one learned convolution over three of them, with stride 2. Frame t sees columns
2 t - 1 to 2 t + 1; the middle one covers exactly the 400 samples of HuBERT's frame t.
"""

import functools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import MEL_HOP, MEL_WINDOW, EncoderConfig
from .convolution import convolves, without_autocast
from .extractor import FeatureExtractor, Moments
from .log_mel import mel_filters
from .running_norm import RunningMoments, in_blocks
from .waveforms import frame_mask

QUIETEST = 1e-10  # floor of the energies, for silence
BLOCK = 1 << 12  # columns of a long wav in memory at a time: 41 s
LEAST_VARIANCE = 1e-4  # floor for the variance of a wav's log energies; a constant signal has none
# Mean and variance of the log energies of speech (the synthetic corpus), as if so many blocks of 20 ms preceded a
# stream. A word's onset has a tenth of its mean energy: normalised by itself, it would make what follows too loud.
ORDINARY = (-4.0, 2.0, 25)


class MelExtractor(FeatureExtractor):
    """(batch, sample) -> (batch, frame, channel); a wav is padded with silence at both ends.

    The log energies of a wav are normalised to zero mean and unit variance over all bins together, so that neither its
    level nor the contrast of the recording matters. The statistics are those of the whole wav; in streaming, of the
    audio so far, preceded by half a second of `ORDINARY` speech; with layer norms (`conv_norm`), of each column. The
    spectrum is computed as a convolution with sines and cosines, which every graph format supports.
    """

    def __init__(self, config: EncoderConfig) -> None:
        nn.Module.__init__(self)
        self.frame_multiple, self.hop, self.mel_bins = 1, config.samples_per_frame, config.mel_bins
        self.padding = MEL_HOP
        self.field = config.min_samples + 2 * self.padding
        ((channels, kernel, stride),) = config.conv_layers
        self.conv_layers = nn.ModuleList([nn.Conv1d(config.mel_bins, channels, kernel, stride)])
        self.scale, self.by_column = None, config.conv_norm == "layer"
        self.running = bool(config.chunk_frames) and not self.by_column

    def forward(self, waveforms: Tensor, lengths: Tensor | None) -> Tensor:
        energies = self.energies(F.pad(waveforms, (self.padding, self.padding)))
        return self._frames(energies, self._moments(energies, lengths))

    def moments(self, waveforms: Tensor, lengths: Tensor | None = None) -> Moments | None:
        """Mean and variance of each wav's log energies, (batch, 1, 1) each, needed by every chunk of it.

        In streaming, the statistics before the first chunk, which `chunk` then updates.
        """
        if self.by_column:
            return None
        if self.running:
            return RunningMoments.before(waveforms, 1)
        if lengths is not None:
            return self._moments(self.energies(F.pad(waveforms, (self.padding, self.padding))), lengths)
        columns = (waveforms.shape[1] - MEL_WINDOW) // MEL_HOP + 1
        precise = torch.float32 if waveforms.device.type == "mps" else torch.float64
        sums, squares = [], []
        for start in range(0, columns, BLOCK):  # the spectra of an hour would take gigabytes
            end = min(start + BLOCK, columns)
            part = self.energies(waveforms[:, start * MEL_HOP : (end - 1) * MEL_HOP + MEL_WINDOW]).to(precise)
            sums.append(part.sum(dim=(1, 2), keepdim=True))
            squares.append(part.square().sum(dim=(1, 2), keepdim=True))
        mean, square = (torch.stack(parts).sum(dim=0) / (columns * self.mel_bins) for parts in (sums, squares))
        variance = (square - mean.square()).clamp(min=0.0)
        dtype = torch.promote_types(waveforms.dtype, torch.float32)
        return mean.to(dtype), variance.to(dtype)

    def chunk(self, waveforms: Tensor, moments: Moments | None) -> Tensor:
        energies = self.energies(waveforms)
        return self._frames(energies, self._moments(energies, None) if moments is None else moments)

    def energies(self, waveforms: Tensor) -> Tensor:
        """Logarithms of mel energies, (batch, sample) -> (batch, bin, column), in fp32."""
        waveforms = waveforms.to(torch.promote_types(waveforms.dtype, torch.float32))
        tables = _tables if torch.compiler.is_compiling() else _kept_tables
        waves, filters = tables(self.mel_bins, waveforms.device, waveforms.dtype)
        with without_autocast(waveforms.device.type):
            if convolves(waveforms):
                spectra = F.conv1d(waveforms[:, None], waves[:, None], stride=MEL_HOP)
            else:  # a GPU's convolution would use TF32, which is too coarse for quiet bands
                spectra = waves @ waveforms.unfold(1, MEL_WINDOW, MEL_HOP).mT
            cosines, sines = spectra.chunk(2, dim=1)
            return (filters @ (cosines.square() + sines.square())).clamp(min=QUIETEST).log10()

    def _moments(self, energies: Tensor, lengths: Tensor | None) -> Moments:
        """Per column, or over the columns within a wav: all but the first and those that reach beyond its end."""
        if self.running:
            return RunningMoments.before(energies, 1)
        if self.by_column:
            variance, mean = torch.var_mean(energies, dim=1, correction=0, keepdim=True)
            return mean, variance
        values = energies[:, :, 1:-1]
        if lengths is None:
            mean = values.mean(dim=(1, 2), keepdim=True)
            return mean, (values - mean).square().mean(dim=(1, 2), keepdim=True)
        counts = (lengths - MEL_WINDOW) // MEL_HOP + 1
        mask = frame_mask(counts, values.shape[2])[:, None]  # (batch, 1, column)
        total = counts.to(values.dtype)[:, None, None] * self.mel_bins
        mean = values.masked_fill(~mask, 0.0).sum(dim=(1, 2), keepdim=True) / total
        return mean, ((values - mean) * mask).square().sum(dim=(1, 2), keepdim=True) / total

    def _frames(self, energies: Tensor, moments: Moments) -> Tensor:
        convolution = self.conv_layers[0]
        assert isinstance(convolution, nn.Conv1d)
        if isinstance(moments, RunningMoments):
            columns = _normalized(energies, moments)
        else:
            mean, variance = moments
            columns = (energies - mean) * torch.rsqrt(variance.clamp(min=LEAST_VARIANCE))
        return F.gelu(convolution(columns.to(convolution.weight.dtype))).transpose(1, 2)


def _normalized(energies: Tensor, moments: RunningMoments) -> Tensor:
    """(batch, bin, column), two columns per frame, normalised by the statistics of the audio before each frame."""
    columns, pairs = energies.shape[2], in_blocks(energies, 2)  # (batch, bin, block, column in it)
    together = pairs.transpose(1, 2).flatten(2)[:, None]  # (batch, 1, block, bin x column)
    moments.assume(*ORDINARY)
    mean, variance = moments.follow(together, (columns - 1) // 2)
    normed = ((together - mean) * torch.rsqrt(variance.clamp(min=LEAST_VARIANCE)))[:, 0]
    return normed.unflatten(2, (-1, 2)).transpose(1, 2).flatten(2)[..., :columns]


def _tables(bins: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Windowed cosines and sines of every frequency, (2 x frequency, sample), and the mel filters."""
    frequencies, samples = (torch.arange(count, device=device) for count in (MEL_WINDOW // 2 + 1, MEL_WINDOW))
    turns = frequencies[:, None] * samples % MEL_WINDOW  # in integers, as large angles lose precision
    angles = turns.to(dtype) * (2 * math.pi / MEL_WINDOW)
    window = torch.hann_window(MEL_WINDOW, dtype=dtype, device=device)
    return torch.cat([angles.cos() * window, angles.sin() * window]), mel_filters(bins, device, dtype)


@functools.lru_cache(maxsize=8)
def _kept_tables(bins: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # they may be needed for gradients later
        return _tables(bins, device, dtype)
