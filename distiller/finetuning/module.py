"""The module for fine-tuning: a recogniser by CTC, its head first, with a learning rate for each layer."""

import re
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distiller.audio.batch import Batch
from distiller.finetuning.config import FineTuning
from distiller.finetuning.recognizer import Recognizer
from distiller.objectives.base import Term
from distiller.objectives.units import span_mask
from distiller.training.module import TrainingModule
from upstream.encoder import SpeechEncoder
from upstream.waveforms import frame_mask

ON_CPU = {"mps"}  # devices for which torch has no CTC loss


class CTC(TrainingModule):
    """The CTC loss (Graves et al. 2006) of each utterance's transcript, per frame.

    Args:
        targets: indices of each utterance's transcript, by its id.
    """

    def __init__(self, recognizer: Recognizer, targets: Mapping[str, list[int]], recipe: FineTuning) -> None:
        super().__init__(recognizer, recipe.optimizer, recipe.seed, recipe.trainer.ema)
        self.targets, self.tuning = targets, recipe.encoder
        self.dropout = nn.Dropout(recipe.head.dropout)
        encoder = recognizer.encoder
        self.mask: nn.Parameter | None = None  # replaces P in masked frames
        if isinstance(encoder, SpeechEncoder):
            encoder.requires_grad_(self.tuning.frozen < 1)
            if not self.tuning.train_extractor:
                encoder.feature_extractor.requires_grad_(False)
            if self.tuning.mask_starts and self.tuning.frozen < 1:
                self.mask = nn.Parameter(torch.empty(encoder.config.embed_dim).uniform_())

    @property
    def recognizer(self) -> Recognizer:
        assert isinstance(self.student, Recognizer)
        return self.student

    def kept_recognizer(self) -> Recognizer:
        """The recogniser to save: the averaged one if there is one."""
        kept = self.student if self.average is None else self.average.module
        assert isinstance(kept, Recognizer)
        return kept

    @property
    def first_step(self) -> int:
        """Number of steps in which only the head is trained."""
        return round(self.tuning.frozen * self.steps)

    def networks(self) -> list[nn.Module]:
        return [self.recognizer.encoder]

    def frame_lengths(self, batch: Batch) -> Tensor:
        return self.recognizer.encoder.config.frame_count(batch.lengths)

    def finite_outputs(self, batch: Batch) -> dict[str, Tensor]:
        return {"encoder": self.recognizer(batch.heard, batch.lengths)[0].isfinite().all()}

    def special_groups(self) -> list[dict[str, Any]]:
        """A group per depth of the encoder: the last layer has lr_scale times the head's rate, earlier ones less."""
        encoder = self.recognizer.encoder
        groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
        for name, parameter in encoder.named_parameters():
            if parameter.requires_grad:
                groups.setdefault((depth(name, encoder), parameter.ndim > 1), []).append(parameter)
        lr, top = self.optimizer_config.lr * self.tuning.lr_scale, encoder.config.num_layers
        return [
            {
                "params": parameters,
                "lr": lr * self.tuning.layer_decay ** (top - layer),
                "weight_decay": self.optimizer_config.weight_decay if matrices else 0.0,
                "first_step": self.first_step,
            }
            for (layer, matrices), parameters in sorted(groups.items(), key=lambda item: item[0])
        ]

    def losses(self, batch: Batch) -> list[Term]:
        states, lengths = self._states(batch)
        logits = self.recognizer.head(self.dropout(states))
        scores = logits.float().log_softmax(dim=-1).transpose(0, 1)  # (frame, batch, token)
        device = torch.device("cpu") if scores.device.type in ON_CPU else scores.device
        rows = [self._target(name) for name in batch.ids]
        targets = torch.tensor([token for row in rows for token in row]).to(device, non_blocking=True)
        counts = torch.tensor([len(row) for row in rows])
        # infinite only if a file is shorter than its header says, since lengths were checked by headers
        loss = F.ctc_loss(scores.to(device), targets, lengths, counts, reduction="sum", zero_infinity=True)
        return [Term("ctc", loss.to(scores.device), "frame")]

    def _states(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The last hidden states, and the frames of each utterance; without gradients while the encoder is frozen."""
        encoder = self.recognizer.encoder
        if not isinstance(encoder, SpeechEncoder):
            output = encoder(batch.heard, batch.lengths)
            return output.last_hidden_state, output.frame_lengths
        frozen = self.training and self.progress.step < self.first_step
        with torch.no_grad() if frozen else nullcontext():
            projected, lengths = encoder.extract(batch.heard, batch.lengths)
            if self.mask is not None and self.training and not frozen:
                valid = frame_mask(lengths, projected.shape[1], projected.device)
                masked = span_mask(valid, self.tuning.mask_span, self.tuning.mask_starts)
                projected = torch.where(masked[..., None], self.mask.to(projected.dtype), projected)
            states = encoder.contextualize(projected, lengths).last_hidden_state
        if frozen:  # DDP waits for a gradient of every parameter; this one is 0
            trained = [parameter.sum() for parameter in self.parameters() if parameter.requires_grad]
            states = states + 0.0 * torch.stack(trained).sum()
        return states, lengths

    def _target(self, name: str) -> list[int]:
        """The transcript of an utterance, which Lhotse may have renamed at the end of an epoch (ID_dup0)."""
        return self.targets[name] if name in self.targets else self.targets[re.sub(r"_dup\d+$", "", name)]


def depth(name: str, encoder: nn.Module) -> int:
    """The layer that a parameter belongs to, 1 for the first; 0 for anything before it."""
    found = re.match(r"layers\.(\d+)\.", name)
    if found:
        return int(found[1]) + 1
    config: Any = encoder.config
    after = name.startswith("layer_norm.") and config.layer_norm_first  # the norm after the last layer
    return config.num_layers if after else 0
