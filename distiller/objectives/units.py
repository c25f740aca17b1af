"""Cross-entropy of the student's frames against discrete units of a teacher, which takes no part (`distiller.units`).

Masked, it is HuBERT's pre-training loss (arXiv 2106.07447): spans of the projected features are replaced by a learned
embedding, and the units there are predicted by cosine logits over learned embeddings of the units.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distiller.objectives.base import Objective, Term
from distiller.objectives.config import UnitsObjectiveConfig
from distiller.units.folder import UnitFolder
from upstream.config import EncoderConfig
from upstream.encoder import EncoderOutput, SpeechEncoder
from upstream.errors import UserError, require


@dataclass
class UnitTargets:
    """What a batch of frames is to predict."""

    units: Tensor  # (batch, frame, stream) int64
    masked: Tensor  # (batch, frame) bool, among the valid frames
    penalty: Tensor  # (batch,) mean square of the convolutions' features over an utterance's valid frames


class UnitHead(nn.Module):
    """Cosine logits of a layer's frames for the units of each stream (torchaudio's LogitGenerator)."""

    def __init__(self, channels: int, width: int, sizes: list[int], temperature: float) -> None:
        super().__init__()
        self.projection = nn.Linear(channels, width)
        self.embeddings = nn.ParameterList(nn.init.uniform_(nn.Parameter(torch.empty(size, width))) for size in sizes)
        self.temperature = temperature

    def forward(self, states: Tensor) -> list[Tensor]:
        """(frame, channel) -> for each stream (frame, unit), in fp32."""
        with torch.autocast(states.device.type, enabled=False):
            projected = F.normalize(F.linear(states.float(), self.projection.weight, self.projection.bias), dim=-1)
            return [projected @ F.normalize(units, dim=-1).T / self.temperature for units in self.embeddings]


class Units(Objective):
    """The objective, and the student's forward pass with masked frames."""

    def __init__(
        self, config: UnitsObjectiveConfig, teacher_config: EncoderConfig, student_config: EncoderConfig
    ) -> None:
        super().__init__(config, teacher_config, student_config)
        if config.targets is None:
            remedy = (
                "make units with `python distiller/targets.py CORPUS --output FOLDER` and give objective.targets=FOLDER"
            )
            raise UserError(f"objective.targets is not set: {remedy}")
        self.config, depth = config, student_config.num_layers
        self.layers = config.student_layers if config.student_layers is not None else [depth]
        inside = all(0 <= layer <= depth for layer in self.layers)
        require(inside, "objective.student_layers", self.layers, f"layers of the student, from 0 to {depth}")
        self.folder, codebook = (folder := UnitFolder(config.targets)), folder.codebook()
        sizes = [len(centroids) for centroids in codebook]
        self.heads = nn.ModuleList(
            UnitHead(student_config.embed_dim, config.width, sizes, config.temperature) for _ in self.layers
        )
        self.mask = nn.Parameter(torch.empty(student_config.embed_dim).uniform_()) if config.mask_probability else None
        for stream, centroids in enumerate(codebook):  # soft targets of each unit, (unit, unit)
            soft = (-torch.cdist(centroids, centroids).square() / config.soft).softmax(-1) if config.soft else None
            self.register_buffer(f"soft_{stream}", soft, persistent=False)

    def encode(
        self, student: SpeechEncoder, waveforms: Tensor, lengths: Tensor, ids: list[str]
    ) -> tuple[UnitTargets, EncoderOutput]:
        """The targets of a batch, and the student's output for it; in training with a new mask, else always the same.

        Raises:
            UserError: an utterance has no units.
        """
        features, frames = student.convolve(waveforms, lengths)
        device, count = features.device, features.shape[1]
        valid = (torch.arange(count) < frames[:, None]).to(device, non_blocking=True)  # (batch, frame)
        projected, masked = student.feature_projection(features), torch.zeros_like(valid)
        if self.mask is not None:
            fixed = None if self.training else torch.Generator(device).manual_seed(0)
            masked = span_mask(
                valid, self.config.mask_span, self.config.mask_probability / self.config.mask_span, fixed
            )
            projected = torch.where(masked[..., None], self.mask.to(projected.dtype), projected)
        squares = features.float().square().mean(dim=-1).masked_fill(~valid, 0.0)  # (batch, frame)
        penalty = squares.sum(dim=1) / frames.to(device, non_blocking=True)
        output = student.contextualize(projected, frames)
        count = output.projected.shape[1]  # fewer where the encoder has cut off the silence that it attends to
        units = self.folder.batch(ids, frames.tolist(), count).to(device, non_blocking=True)
        return UnitTargets(units, masked[:, :count], penalty), output

    def forward(self, teacher: UnitTargets, student: EncoderOutput, frame_mask: Tensor) -> list[Term]:
        """Sums over frames: together torchaudio's loss with reduction="sum", for one layer and stream."""
        config, valid = self.config, student.valid_frames()
        units = teacher.units.flatten(0, 1).index_select(0, valid)  # (frame, stream)
        masked = teacher.masked.flatten().index_select(0, valid)  # (frame,)
        loss = torch.zeros((), device=frame_mask.device)
        for layer, head in zip(self.layers, self.heads, strict=True):
            states = student.last_hidden_state if layer == len(student.hidden_states) - 1 else student.layer(layer)
            for stream, logits in enumerate(head(states.flatten(0, 1).index_select(0, valid))):
                soft, column = getattr(self, f"soft_{stream}"), units[:, stream]
                targets = column if soft is None else soft[column]
                loss = loss + F.cross_entropy(logits, targets, reduction="none")  # (frame,)
        loss = loss / (len(self.layers) * units.shape[1])
        terms = {"masked": (loss * masked).sum(), "unmasked": (loss * ~masked).sum()}
        terms["feature_penalty"] = (teacher.penalty * teacher.masked.sum(dim=1)).sum()
        weights = {name: getattr(config, f"{name}_weight") for name in ("masked", "unmasked")}
        weights["feature_penalty"] = config.feature_penalty
        unused = set() if config.mask_probability else {"masked", "feature_penalty"}
        return [
            Term(name, terms[name], "frame", weights[name]) for name in terms if weights[name] and name not in unused
        ]


def span_mask(valid: Tensor, span: int, starts: float, generator: torch.Generator | None = None) -> Tensor:
    """Random spans of the `valid` frames, overlapping ones merged; both are (batch, frame) bool.

    Args:
        starts: share of frames that a span starts at.
    """
    begins = (torch.rand(valid.shape, device=valid.device, generator=generator) < starts).float()
    covered = F.max_pool1d(F.pad(begins, (span - 1, 0))[:, None], span, stride=1)[:, 0]
    return (covered > 0) & valid
