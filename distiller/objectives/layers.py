"""Frame-wise matching of layers: what DPHuBERT, DistilHuBERT and SKILL's clusters have in common, and the first two.

A match compares a mean of teacher layers with a head on a mean of student layers, frame by frame:

    loss = l1_weight |prediction - target|_1 / d + cosine_weight c(cos(prediction, target)), mean over the matches

with c(x) = -x (DPHuBERT, arXiv 2305.17651, eq. 1; SKILL, arXiv 2402.16830) or c(x) = -log sigmoid(x) (DistilHuBERT,
arXiv 2110.01900, eq. 3).
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distiller.objectives.base import Objective, Term
from distiller.objectives.config import LayersConfig, PredictionsConfig, Zeroth
from distiller.objectives.layer_map import check_layers, spread_layers, student_layers
from upstream.config import EncoderConfig
from upstream.encoder import EncoderOutput

LAST = -1  # as a layer: the last hidden state, normed in pre-LN models


@dataclass(frozen=True)
class Match:
    """One comparison: teacher layers whose mean is the target, student layers whose mean the head reads."""

    teacher: tuple[int, ...]
    student: tuple[int, ...]
    head: int


class LayerMatching(Objective):
    """Frame-wise L1 and cosine loss of `matches`; the heads are its parameters.

    A subclass plans matches and heads from its configuration.
    """

    log_sigmoid = False  # of the cosine

    def __init__(self, config: "LayersConfig", teacher_config: EncoderConfig, student_config: EncoderConfig) -> None:
        super().__init__(config, teacher_config, student_config)
        self.matches, heads = self.plan(config, teacher_config, student_config)
        self.heads = nn.ModuleList(heads)
        self.zeroth: Zeroth = config.zeroth
        self.weights = (config.l1_weight, config.cosine_weight)

    @abstractmethod
    def plan(self, config: Any, teacher: EncoderConfig, student: EncoderConfig) -> tuple[list[Match], list[nn.Module]]:
        """What is compared, through which heads."""

    def forward(self, teacher: EncoderOutput, student: EncoderOutput, frame_mask: Tensor) -> list[Term]:
        l1 = cosine = torch.zeros((), device=frame_mask.device)
        valid = student.valid_frames()
        for match in self.matches:
            # valid frames are taken out before anything is computed from them, so that padding touches no gradient
            target = self.mean_state(teacher, match.teacher).flatten(0, 1)[valid].detach().float()  # (frame, channel)
            prediction = self.heads[match.head](self.mean_state(student, match.student).flatten(0, 1)[valid]).float()
            l1 = l1 + (prediction - target).abs().mean(dim=-1).sum()
            similarity = F.cosine_similarity(prediction, target, dim=-1)
            cosine = cosine - (F.logsigmoid(similarity) if self.log_sigmoid else similarity).sum()
        l1_weight, cosine_weight = self.weights
        count = len(self.matches)
        return [Term("l1", l1 / count, "frame", l1_weight), Term("cosine", cosine / count, "frame", cosine_weight)]

    def mean_state(self, output: EncoderOutput, layers: Sequence[int]) -> Tensor:
        """Mean of the given layers' states, (batch, frame, channel)."""
        states = [self._state(output, layer) for layer in layers]
        return states[0] if len(states) == 1 else torch.stack(states).mean(dim=0)

    def _state(self, output: EncoderOutput, layer: int) -> Tensor:
        if layer == LAST:
            return output.last_hidden_state
        return output.projected if layer == 0 and self.zeroth == "projected" else output.hidden_states[layer]


def projection(student_width: int, teacher_width: int) -> nn.Linear:
    """A linear head that starts as the identity; where the widths differ, as Xavier uniform with zero bias."""
    linear = nn.Linear(student_width, teacher_width)
    if student_width == teacher_width:
        nn.init.eye_(linear.weight)
    else:
        nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class Layers(LayerMatching):
    """DPHuBERT: layers 0, 4, 8, 12 of 12 against the same layers of the student."""

    config_class = LayersConfig

    def plan(
        self, config: LayersConfig, teacher: EncoderConfig, student: EncoderConfig
    ) -> tuple[list[Match], list[nn.Module]]:
        depth = teacher.num_layers
        layers = config.layers if config.layers is not None else [0, *spread_layers(depth, 3)]
        check_layers(layers, depth, "objective.layers")
        zeroth = 0 in layers  # its head is the first one; the other layers share the next
        matches = [
            Match(
                (layer,),
                student_layers([layer], depth, student.num_layers, config.layer_map),
                int(zeroth and layer != 0),
            )
            for layer in layers
        ]
        return matches, [projection(student.embed_dim, teacher.embed_dim) for _ in {match.head for match in matches}]


class Predictions(LayerMatching):
    """DistilHuBERT: the student's last hidden state predicts layers 4, 8 and 12 of the teacher.

    A head is linear, GELU, linear with the teacher's width between (as in the authors' code); the loss is averaged over
    the layers where the paper sums them (our choice, the same scale as the other objectives).
    """

    config_class = PredictionsConfig
    log_sigmoid = True

    def plan(
        self, config: PredictionsConfig, teacher: EncoderConfig, student: EncoderConfig
    ) -> tuple[list[Match], list[nn.Module]]:
        layers = config.layers if config.layers is not None else spread_layers(teacher.num_layers, 3)
        check_layers(layers, teacher.num_layers, "objective.layers")
        width = teacher.embed_dim
        heads: list[nn.Module] = [
            nn.Sequential(nn.Linear(student.embed_dim, width), nn.GELU(), nn.Linear(width, width)) for _ in layers
        ]
        return [Match((layer,), (LAST,), index) for index, layer in enumerate(layers)], heads
