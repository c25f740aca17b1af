"""Frame-wise matching of layers: the base of DPHuBERT's, DistilHuBERT's and SKILL's objectives.

A match compares a mean of teacher layers with a projection of a mean of student layers, frame by frame:

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
from distiller.objectives.config import ClustersConfig, LayersConfig, PredictionsConfig
from distiller.objectives.layer_map import check_layers, spread_layers, student_layers
from upstream.config import EncoderConfig
from upstream.encoder import EncoderOutput
from upstream.errors import UserError

LAST = -1  # as a layer: the last hidden state, normed in pre-LN models


@dataclass(frozen=True)
class Match:
    """One comparison: teacher layers whose mean is the target, student layers whose mean is projected."""

    teacher: tuple[int, ...]
    student: tuple[int, ...]
    projection: int  # index of the projection


class LayerMatching(Objective):
    """Frame-wise L1 and cosine loss of `matches`; the projections are its parameters.

    A subclass plans matches and projections from its configuration.
    """

    log_sigmoid = False  # of the cosine

    def __init__(self, config: LayersConfig, teacher_config: EncoderConfig, student_config: EncoderConfig) -> None:
        super().__init__(config, teacher_config, student_config)
        self.matches, projections = self.plan(config, teacher_config, student_config)
        self.projections = nn.ModuleList(projections)
        self.layer_zero = config.layer_zero
        self.weights = (config.l1_weight, config.cosine_weight)

    @abstractmethod
    def plan(self, config: Any, teacher: EncoderConfig, student: EncoderConfig) -> tuple[list[Match], list[nn.Module]]:
        """The comparisons, and the projections that they refer to."""

    def forward(self, teacher: Any, student: EncoderOutput, frame_mask: Tensor, targets: Any = None) -> list[Term]:
        l1 = cosine = torch.zeros((), device=frame_mask.device)
        valid = student.valid_frames()
        for match in self.matches:
            # valid frames are selected before anything is computed from them, so that padding affects no gradient
            target = self.mean_state(teacher, match.teacher).flatten(0, 1).index_select(0, valid).detach().float()
            predicted = self.mean_state(student, match.student).flatten(0, 1).index_select(0, valid)  # (frame, channel)
            prediction = self.projections[match.projection](predicted).float()
            l1 = l1 + (prediction - target).abs().mean(dim=-1).sum()
            similarity = F.cosine_similarity(prediction, target, dim=-1)
            cosine = cosine - (F.logsigmoid(similarity) if self.log_sigmoid else similarity).sum()
        l1_weight, cosine_weight = self.weights
        count = len(self.matches)
        return [Term("l1", l1 / count, "frame", l1_weight), Term("cosine", cosine / count, "frame", cosine_weight)]

    def mean_state(self, output: EncoderOutput, layers: Sequence[int]) -> Tensor:
        """Mean of the given layers' states, (batch, frame, channel)."""
        states = [
            output.last_hidden_state if layer == LAST else output.layer(layer, self.layer_zero) for layer in layers
        ]
        return states[0] if len(states) == 1 else torch.stack(states).mean(dim=0)


def projection(student_width: int, teacher_width: int) -> nn.Linear:
    """A linear layer initialised as the identity; if the widths differ, Xavier uniform with zero bias."""
    linear = nn.Linear(student_width, teacher_width)
    if student_width == teacher_width:
        nn.init.eye_(linear.weight)
    else:
        nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class Layers(LayerMatching):
    """DPHuBERT: layers 0, 4, 8, 12 of 12 against the same layers of the student."""

    def plan(
        self, config: LayersConfig, teacher: EncoderConfig, student: EncoderConfig
    ) -> tuple[list[Match], list[nn.Module]]:
        depth = teacher.num_layers
        layers = config.layers if config.layers is not None else [0, *spread_layers(depth, 3)]
        check_layers(layers, depth, f"{config.key}.layers")
        followers = [
            student_layers([layer], depth, student.num_layers, config.layer_map, config.key) for layer in layers
        ]
        shared = int(0 in layers)  # layer 0 has the first projection; the other layers share the next
        matches = [Match((layer,), followers[index], shared * (layer != 0)) for index, layer in enumerate(layers)]
        count = len({match.projection for match in matches})
        return matches, [projection(student.embed_dim, teacher.embed_dim) for _ in range(count)]


class Predictions(LayerMatching):
    """DistilHuBERT: the student's last hidden state predicts layers 4, 8 and 12 of the teacher.

    A projection is linear, GELU, linear with the teacher's width between (as in the authors' code); the loss is the
    mean over the layers, where the paper takes the sum (our choice, for the same scale as the other objectives).
    """

    log_sigmoid = True

    def plan(
        self, config: PredictionsConfig, teacher: EncoderConfig, student: EncoderConfig
    ) -> tuple[list[Match], list[nn.Module]]:
        layers = config.layers if config.layers is not None else spread_layers(teacher.num_layers, 3)
        check_layers(layers, teacher.num_layers, f"{config.key}.layers")
        width = teacher.embed_dim
        projections: list[nn.Module] = [
            nn.Sequential(nn.Linear(student.embed_dim, width), nn.GELU(), nn.Linear(width, width)) for _ in layers
        ]
        return [Match((layer,), (LAST,), index) for index, layer in enumerate(layers)], projections


class Clusters(LayerMatching):
    """SKILL (arXiv 2402.16830): the mean of each cluster of similar teacher layers (`distiller.clustering`).

    Target k is the mean over the teacher layers of cluster k, the prediction one linear projection of the mean over the
    student's layers of the same cluster, the loss L1 - cos per cluster, averaged over clusters. A layer's influence is
    thus inversely proportional to its cluster's size. With target=representative only the representative is used.
    """

    def plan(
        self, config: ClustersConfig, teacher: EncoderConfig, student: EncoderConfig
    ) -> tuple[list[Match], list[nn.Module]]:
        matches = []
        for index, group in enumerate(_groups(config)):
            check_layers(group, teacher.num_layers, f"{config.key}.clusters")
            way = teacher.num_layers, student.num_layers, config.layer_map, config.key
            followers = student_layers(group, *way)
            matches.append(Match(tuple(group), followers, index))
        return matches, [projection(student.embed_dim, teacher.embed_dim) for _ in matches]


def _groups(config: ClustersConfig) -> list[list[int]]:
    if config.clusters is None:
        remedy = "the teacher's layers have to be clustered first (distiller/similarity.py)"
        raise UserError(f"{config.key}.clusters is not set: {remedy}")
    if config.target == "mean":
        return config.clusters
    if config.representatives is None:
        key = config.key
        raise UserError(f"{key}.target=representative needs {key}.representatives as well as {key}.clusters")
    return [[layer] for layer in config.representatives]
