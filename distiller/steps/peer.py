"""The baseline for our training step: two plain models of `transformers`, and a straightforward loss."""

from itertools import product

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, l1_loss, logsigmoid

from distiller.audio.batch import Batch
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder
from upstream.formats import huggingface_writing

MATCHED = (0, 3, 6, 9, 12)  # hidden states that SKILL's peer compares: one per cluster of the measured recipe


class Peer(nn.Module):
    """Teacher and student as HubertModel with sdpa attention, and the loss of a micro-batch.

    Args:
        method: star (Gram matrices of every layer, frame by frame) or skill (L1 and cosine of projected states).
        teacher, student: shapes; the models have them as far as their class supports them.
    """

    def __init__(self, method: str, teacher: EncoderConfig, student: EncoderConfig) -> None:
        super().__init__()
        self.method, self.config = method, teacher
        self.teacher = plain_model(teacher).eval().requires_grad_(False)
        self.student = plain_model(student).train()
        shape = (student.embed_dim, teacher.embed_dim)
        projected = [layer for layer in MATCHED if layer <= teacher.num_layers] if method == "skill" else []
        self.projections = nn.ModuleDict({str(layer): nn.Linear(*shape) for layer in projected})

    def optimizer(self) -> torch.optim.AdamW:
        return torch.optim.AdamW([parameter for parameter in self.parameters() if parameter.requires_grad])

    def penalty(self) -> tuple[float, dict[str, float]]:
        """As in our module; there is none."""
        return 0.0, {}

    def frame_lengths(self, batch: Batch) -> Tensor:
        return self.config.frame_count(batch.lengths)

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, a mean over the micro-batch whatever the counts are."""
        waveforms, lengths = batch.waveforms, batch.lengths
        samples, frames = waveforms.shape[1], self.config.frame_count(waveforms.shape[1])
        padded = bool((lengths < samples).any())
        attended = until(lengths, samples).to(waveforms.device, torch.long) if padded else None
        mask = until(self.frame_lengths(batch), frames).to(waveforms.device)  # (batch, frame)
        with torch.no_grad():
            wanted = self.teacher(waveforms, attention_mask=attended, output_hidden_states=True).hidden_states
        states = self.student(waveforms, attention_mask=attended, output_hidden_states=True).hidden_states
        if self.method == "star":
            return gram_loss(wanted, states, mask), {}
        losses = [
            matching_loss(wanted[int(layer)], projection(states[int(layer)]), mask)
            for layer, projection in self.projections.items()
        ]
        return torch.stack(losses).sum(), {}


def plain_model(config: EncoderConfig) -> nn.Module:
    from transformers import HubertConfig, HubertModel

    with torch.device("meta"):
        values, _, _ = huggingface_writing.write(SpeechEncoder(config))
    dropouts = {"hidden_dropout": config.hidden_dropout, "attention_dropout": config.attention_dropout}
    plain = HubertConfig.from_dict(values | dropouts | {"feat_proj_dropout": config.feature_dropout})
    plain._attn_implementation = "sdpa"
    return HubertModel(plain)


def until(lengths: Tensor, size: int) -> Tensor:
    """(batch, size) bool, True before each length."""
    return torch.arange(size) < lengths[:, None]


def gram_loss(teacher: tuple[Tensor, ...], student: tuple[Tensor, ...], mask: Tensor) -> Tensor:
    """STaR's layer-wise and intra-layer terms from whole Gram matrices, (batch, frame, frame), in fp32."""
    pairs = mask[:, :, None] & mask[:, None, :]
    total = torch.zeros((), device=mask.device)
    with torch.autocast(mask.device.type, enabled=False):
        for layer, lag in product(range(1, len(teacher)), (0, 1)):
            ours, theirs = (
                states[layer - lag].float() @ states[layer].float().transpose(1, 2) for states in (student, teacher)
            )
            squares = (ours - theirs).square() * pairs
            total = total + (squares.sum(dim=(1, 2)) / pairs.sum(dim=(1, 2))).mean()
    return total


def matching_loss(teacher: Tensor, student: Tensor, mask: Tensor) -> Tensor:
    """L1 and cosine distance of the valid frames."""
    ours, theirs = student[mask].float(), teacher[mask].float()
    return l1_loss(ours, theirs) - logsigmoid(cosine_similarity(ours, theirs, dim=-1)).mean()
