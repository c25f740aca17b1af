"""Cross-entropy of the student's frames against a teacher's units; the teacher is not run (`distiller.codebooks`).

Masked, it is HuBERT's pre-training loss (arXiv 2106.07447): spans of the projected features are replaced by a learned
embedding, and the units there are predicted by cosine logits over learned embeddings of the units.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distiller.codebooks.folder import UnitFolder
from distiller.objectives.base import Objective, Term
from distiller.objectives.config import UnitsObjectiveConfig
from upstream.config import EncoderConfig
from upstream.encoder import EncoderOutput, SpeechEncoder
from upstream.errors import UserError, require

EMBEDDING_STD = 0.1


@dataclass
class UnitTargets:
    """The prediction targets of a batch; complete once the student has run."""

    units: Tensor  # (batch, frame, stream) int64
    masked: Tensor  # (batch, frame) bool, among the valid frames
    penalty: Tensor  # (batch,) mean square of the convolutions' features over an utterance's valid frames, if masked


class UnitHead(nn.Module):
    """Cosine logits of a layer's frames for the units of each stream (torchaudio's LogitGenerator)."""

    def __init__(self, channels: int, width: int, sizes: list[int], temperature: float) -> None:
        super().__init__()
        self.projection = nn.Linear(channels, width)
        # around 0: with HuBERT's, from 0 to 1, all units start in nearly the same direction (docs/teacher.md)
        starts = (nn.init.normal_(torch.empty(size, width), std=EMBEDDING_STD) for size in sizes)
        self.embeddings = nn.ParameterList(nn.Parameter(start) for start in starts)
        self.temperature = temperature

    def forward(self, states: Tensor) -> list[Tensor]:
        """(frame, channel) -> for each stream (frame, unit), in fp32."""
        with torch.autocast(states.device.type, enabled=False):
            projected = F.normalize(F.linear(states.float(), self.projection.weight, self.projection.bias), dim=-1)
            return [projected @ F.normalize(units, dim=-1).T / self.temperature for units in self.embeddings]


class Units(Objective):
    """The objective, and the mask of the student's frames."""

    def __init__(
        self, config: UnitsObjectiveConfig, teacher_config: EncoderConfig, student_config: EncoderConfig
    ) -> None:
        super().__init__(config, teacher_config, student_config)
        if config.targets is None:
            make = "make units with `python distiller/targets.py CORPUS --output FOLDER`"
            raise UserError(f"{config.key}.targets is not set: {make} and give {config.key}.targets=FOLDER")
        self.config, depth = config, student_config.num_layers
        self.layers = config.student_layers if config.student_layers is not None else [depth]
        inside = all(0 <= layer <= depth for layer in self.layers)
        require(inside, f"{config.key}.student_layers", self.layers, f"layers of the student, from 0 to {depth}")
        self.folder, codebook = (folder := UnitFolder(config.targets)), folder.codebook()
        sizes = [len(centroids) for centroids in codebook]
        self.heads = nn.ModuleList(
            UnitHead(student_config.embed_dim, config.width, sizes, config.temperature) for _ in self.layers
        )
        self.mask = nn.Parameter(torch.empty(student_config.embed_dim).uniform_()) if config.mask_probability else None
        for stream, centroids in enumerate(codebook):  # soft targets of each unit, (unit, unit)
            soft = (-torch.cdist(centroids, centroids).square() / config.soft).softmax(-1) if config.soft else None
            self.register_buffer(f"soft_{stream}", soft, persistent=False)

    @contextmanager
    def watching(self, student: SpeechEncoder, lengths: Tensor, ids: list[str]) -> Iterator[UnitTargets]:
        """Masks frames of P, before the layers; with a new mask each time in training, otherwise always the same one.

        Raises:
            UserError: an utterance has no units.
        """
        frames, none = student.config.frame_count(lengths), torch.empty(0)
        targets = UnitTargets(none, none, none)

        def mask(_: nn.Module, inputs: tuple[Tensor], projected: Tensor) -> Tensor:
            (features,) = inputs  # (batch, frame, channel)
            device, count = features.device, features.shape[1]
            targets.units = self.folder.batch(ids, frames.tolist(), count).to(device, non_blocking=True)
            valid = (torch.arange(count) < frames[:, None]).to(device, non_blocking=True)  # (batch, frame)
            targets.masked = torch.zeros_like(valid)
            if self.mask is None:
                return projected
            fixed = None if self.training else torch.Generator(device).manual_seed(0)
            starts = self.config.mask_probability / self.config.mask_span
            targets.masked = span_mask(valid, self.config.mask_span, starts, fixed)
            squares = features.float().square().mean(dim=-1).masked_fill(~valid, 0.0)  # (batch, frame)
            targets.penalty = squares.sum(dim=1) / frames.to(device, non_blocking=True)
            return torch.where(targets.masked[..., None], self.mask.to(projected.dtype), projected)

        hook = student.feature_projection.register_forward_hook(mask)
        try:
            yield targets
        finally:
            hook.remove()

    def forward(self, teacher: Any, student: EncoderOutput, frame_mask: Tensor, targets: Any = None) -> list[Term]:
        """Sums over frames; for one layer and stream, their total is torchaudio's loss with reduction="sum".

        Args:
            targets: `UnitTargets` of the student's frames, or of more: some encoders drop their last ones.
        """
        config, valid = self.config, student.valid_frames()
        frames = frame_mask.shape[1]
        masks = targets.masked[:, :frames]
        units = targets.units[:, :frames].flatten(0, 1).index_select(0, valid)  # (frame, stream)
        masked = masks.flatten().index_select(0, valid)  # (frame,)
        loss = torch.zeros((), device=frame_mask.device)
        for layer, head in zip(self.layers, self.heads, strict=True):
            states = student.last_hidden_state if layer == len(student.hidden_states) - 1 else student.layer(layer)
            for stream, logits in enumerate(head(states.flatten(0, 1).index_select(0, valid))):
                soft, column = getattr(self, f"soft_{stream}"), units[:, stream]
                wanted = column if soft is None else soft[column]
                loss = loss + F.cross_entropy(logits, wanted, reduction="none")  # (frame,)
        loss = loss / (len(self.layers) * units.shape[1])
        terms = {"unmasked": (loss * ~masked).sum()}
        weights = {"unmasked": config.unmasked_weight or 0.0}
        if self.mask is not None:
            terms |= {"masked": (loss * masked).sum(), "feature_penalty": (targets.penalty * masks.sum(dim=1)).sum()}
            weights |= {"masked": config.masked_weight, "feature_penalty": config.feature_penalty}
        return [Term(name, terms[name], "frame", weight) for name, weight in weights.items() if weight]


def span_mask(valid: Tensor, span: int, starts: float, generator: torch.Generator | None = None) -> Tensor:
    """Random spans of the `valid` frames, overlapping ones merged; both are (batch, frame) bool.

    Args:
        starts: share of frames that a span starts at.
    """
    begins = (torch.rand(valid.shape, device=valid.device, generator=generator) < starts).float()
    covered = F.max_pool1d(F.pad(begins, (span - 1, 0))[:, None], span, stride=1)[:, 0]
    return (covered > 0) & valid
