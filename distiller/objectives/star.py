"""STaR: distil the temporal relation between frames, not the frames (arXiv 2312.09040).

Average and last attention maps, layer-wise and intra-layer temporal Gram matrices (TGM), and any weighted sum of them.
No projections: nothing is trained only to be discarded afterwards.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from distiller.objectives.base import Objective, Term
from distiller.objectives.config import ATTENTION_TERMS, GRAM_LAGS, StarConfig
from distiller.objectives.gram import TINY, gram_distances, gram_features
from distiller.objectives.layer_map import resolve_layer_map
from upstream.config import EncoderConfig
from upstream.encoder import EncoderOutput
from upstream.errors import require

SMALLEST_PROBABILITY = 1e-30  # keeps log and its gradient finite, loss scaling of fp16 included


class Star(Objective):
    """The weighted STaR terms between a teacher and a student of any widths and head counts."""

    def __init__(self, config: StarConfig, teacher_config: EncoderConfig, student_config: EncoderConfig) -> None:
        super().__init__(config, teacher_config, student_config)
        self.config = config
        depths = teacher_config.num_layers, student_config.num_layers
        self.layer_map = resolve_layer_map(config.layer_map, *depths, config.key)
        self.weights = {key: getattr(config, key) for key in (*ATTENTION_TERMS, *GRAM_LAGS) if getattr(config, key) > 0}
        self.attention_pairs = {
            name: self._attention_pairs(name, teacher_config, student_config)
            for name in ATTENTION_TERMS
            if name in self.weights
        }
        self.needs_attention_maps = bool(self.attention_pairs)

    def forward(self, teacher: Any, student: EncoderOutput, frame_mask: Tensor, targets: Any = None) -> list[Term]:
        terms = [
            Term(name, _attention_loss(pairs, teacher, student, frame_mask).sum(), "frame", self.weights[name])
            for name, pairs in self.attention_pairs.items()
        ]
        if names := [name for name in GRAM_LAGS if name in self.weights]:
            losses = gram_losses(
                # sub-sampled first, so that a student layer's input is compared with that of all the layers it replaces
                [teacher.layer(layer, self.config.layer_zero) for layer in (0, *self.layer_map)],
                [student.layer(layer, self.config.layer_zero) for layer in range(len(student.hidden_states))],
                frame_mask,
                names,
                scaling=self.config.scaling,
                relative=self.config.relative,
                identity=self.config.identity == "auto",
                precision=self.config.gram_precision,
            )
            terms += [Term(name, loss.sum(), "utterance", self.weights[name]) for name, loss in losses.items()]
        return terms

    def _attention_pairs(
        self, name: str, teacher_config: EncoderConfig, student_config: EncoderConfig
    ) -> list[tuple[int, int]]:
        """(teacher, student) indices into the attention maps that a term compares, where both layers have heads."""
        pairs = [(mapped - 1, index) for index, mapped in enumerate(self.layer_map)]
        if name == "last_attention":
            pairs = pairs[-1:]
        pairs = [(t, s) for t, s in pairs if teacher_config.attention_heads[t] and student_config.attention_heads[s]]
        allowed = "0, since no two of its layers have attention"
        require(bool(pairs), f"{self.config.key}.{name}", self.weights[name], allowed)
        return pairs


def _attention_loss(
    pairs: Sequence[tuple[int, int]], teacher: EncoderOutput, student: EncoderOutput, frame_mask: Tensor
) -> Tensor:
    """The sum of `attention_loss` over pairs of (teacher, student) attention maps, (batch,)."""
    total = frame_mask.new_zeros(len(frame_mask), dtype=torch.float32)
    for teacher_index, student_index in pairs:
        total = total + attention_loss(_map(teacher, teacher_index), _map(student, student_index), frame_mask)
    return total


def _map(output: EncoderOutput, index: int) -> Tensor:
    """The attention map of a layer that has heads."""
    attention_map = (output.attention_maps or [])[index]
    assert attention_map is not None
    return attention_map


def gram_losses(
    teacher_states: Sequence[Tensor],
    student_states: Sequence[Tensor],
    frame_mask: Tensor,
    names: Sequence[str] = tuple(GRAM_LAGS),
    scaling: str = "none",
    relative: bool = False,
    identity: bool = True,
    precision: str = "ieee",
) -> dict[str, Tensor]:
    """Layer-wise and intra-layer TGM losses of each utterance.

    "layer_wise": sum over l = 1..L of the mean over valid frame pairs of (G^{l,T} - G^{l,S})^2, G^l = F^l (F^l)^T;
    "intra_layer": the same with F^{l-1} (F^l)^T. The mean is our choice.

    Args:
        teacher_states, student_states: F^0..F^L of both, each (batch, frame, channel).
        frame_mask: (batch, frame) bool.
        names: the losses wanted; together they share work.
        scaling: of the Gram matrices, see `gram_features`. "centred" also divides G by the root of its mean square
            entry over valid pairs: a layer's loss is then the squared distance of the two matrices at unit Frobenius
            norm, at most 4 whatever the length.
        relative: divide each layer's term by the mean over valid pairs of the teacher's squared entries, and take the
            mean over layers: the loss is of order 1 whatever the depth, as the pruning Lagrangian requires.
        identity: allow the channel form of the distance on a CPU, where it is cheaper and accurate.
        precision: "ieee" or "tf32", of the Gram matrices' products on CUDA.

    Returns:
        name -> (batch,), computed in fp32 or better, except for products in TF32.
    """
    teacher, student = (gram_features(states, frame_mask, scaling) for states in (teacher_states, student_states))
    lags = [GRAM_LAGS[name] for name in names]
    pairs = gram_distances(teacher, student, lags, scaling == "centred", identity, precision)
    if relative:
        losses = [(distance / norm.clamp(min=TINY)).mean(dim=0) for distance, norm in pairs]
    else:
        losses = [distance.sum(dim=0) for distance, _ in pairs]
    return dict(zip(names, losses, strict=True))


def attention_loss(teacher_map: Tensor, student_map: Tensor, frame_mask: Tensor) -> Tensor:
    """KL(mean over heads of A_T || mean over heads of A_S) over keys, summed over an utterance's valid queries.

    STaR's average attention map, for one layer.

    Args:
        teacher_map, student_map: (batch, head, query, key), after softmax; head counts may differ.
        frame_mask: (batch, frame) bool; padded queries and keys take no part.

    Returns:
        (batch,), in fp32 or better.
    """
    valid = frame_mask[:, :, None] & frame_mask[:, None, :]  # (batch, query, key)
    teacher_mean, student_mean = (
        heads.to(torch.promote_types(heads.dtype, torch.float32)).mean(dim=1)
        for heads in (teacher_map.detach(), student_map)
    )
    target = teacher_mean.masked_fill(~valid, 0.0)
    prediction = student_mean.masked_fill(~valid, 1.0).clamp(min=SMALLEST_PROBABILITY)
    return (torch.xlogy(target, target) - target * prediction.log()).sum(dim=(1, 2))
