"""Before a run's own steps, a new student's convolutions can learn the log-mel spectrogram of their input.

Every objective needs the information in a spectrogram, but its gradient reaches the convolutions through all layers.
Here it reaches them directly, without computing the layers (docs/teacher.md shows the gain).
"""

import math
from dataclasses import replace

from torch import Tensor, nn
from torch.nn import functional as F

from distiller.audio.batch import Batch
from distiller.objectives.base import Term
from distiller.recipes.recipe import Recipe
from distiller.training.module import TrainingModule
from upstream.config import MEL_HOP, EncoderConfig
from upstream.encoder import SpeechEncoder
from upstream.log_mel import log_mel
from upstream.waveforms import frame_mask

BINS = 80
VARIANCE = 0.2  # of an utterance's spectrogram in the units of `log_mel`, where 0.25 is a factor of ten in energy


class LogMelRegression(TrainingModule):
    """A linear map predicts the spectrogram columns around the middle of a frame from its features.

    The encoder is the student; only its extractor is trained.
    """

    def __init__(self, encoder: SpeechEncoder, recipe: Recipe, lr: float) -> None:
        super().__init__(encoder, replace(recipe.optimizer, lr=lr, weight_decay=0.0), recipe.seed)
        encoder.requires_grad_(False)
        encoder.feature_extractor.requires_grad_(True)
        shape = encoder.config
        self.encoder_config, self.per_frame = shape, shape.samples_per_frame // MEL_HOP
        self.map = nn.Linear(shape.conv_layers[-1][0], BINS * self.per_frame)

    def networks(self) -> list[nn.Module]:
        """None: the layers are not run."""
        return []

    def frame_lengths(self, batch: Batch) -> Tensor:
        return self.encoder_config.frame_count(batch.lengths)

    def losses(self, batch: Batch) -> list[Term]:
        """The mean squared error as a share of `VARIANCE`."""
        assert isinstance(self.student, SpeechEncoder)
        features, frame_lengths = self.student.convolve(batch.heard, batch.lengths)
        mask = frame_mask(frame_lengths, features.shape[1], features.device)
        wanted = spectrogram(batch.heard, mask, self.encoder_config)
        errors = (self.map(features).float() - wanted).square().mean(dim=-1) / VARIANCE  # (batch, frame)
        return [Term("log_mel", errors.masked_fill(~mask, 0.0).sum(), "frame")]


def spectrogram(waveforms: Tensor, mask: Tensor, shape: EncoderConfig) -> Tensor:
    """For each frame, the columns nearest to its middle, minus the mean over the utterance's valid frames.

    The mean is subtracted because some extractors' norms remove the loudness of an utterance.

    Args:
        waveforms: (batch, sample), zeros after each utterance.
        mask: (batch, frame), the valid frames.

    Returns:
        (batch, frame, columns x bins)
    """
    hop, frames = shape.samples_per_frame, mask.shape[1]
    per_frame = hop // MEL_HOP
    first = math.ceil((shape.min_samples - hop) / 2 / MEL_HOP)  # the first frame's middle is at min_samples / 2
    columns = log_mel(F.pad(waveforms, (0, hop)), BINS)[..., first : first + frames * per_frame]
    columns = columns.unflatten(2, (frames, per_frame)).permute(0, 2, 3, 1).flatten(2)  # (batch, frame, column x bin)
    sums = columns.masked_fill(~mask[..., None], 0.0).sum(dim=(1, 2))
    return columns - (sums / (mask.sum(dim=1) * columns.shape[2]))[:, None, None]
