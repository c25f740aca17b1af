"""How far a student's layers are from the teacher's, on held-out audio (SKILL's analysis; the measures are ours)."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from distiller.audio.batch import Batch
from distiller.clustering.calibrate import ENOUGH
from distiller.clustering.cka import PairMoments
from distiller.common.files import write_csv
from distiller.common.progress import progress
from distiller.objectives.layer_map import resolve_layer_map
from distiller.teachers.alignment import aligned
from upstream.encoder import SpeechEncoder


@torch.no_grad()
def write_distances(
    path: Path, teacher: SpeechEncoder, student: SpeechEncoder, batches: Sequence[Callable[[], Batch]]
) -> None:
    """A CSV with a row per layer: teacher_layer, student_layer, l2, cosine, cka; layer 0 is P.

    l2: root of sum |T - S|^2 / sum |T|^2 over frames; cosine: 1 - cosine similarity, mean over frames; both only if the
    widths agree. cka: 1 - linear CKA over all frames. States are compared without the objective's projections; the
    student's layers are matched to evenly spaced ones of the teacher. Only as many batches as CKA needs are used; both
    encoders are in eval mode.
    """
    depth = teacher.config.num_layers
    count = 1 + min(depth, student.config.num_layers)
    layers = [0, *resolve_layer_map(None, depth, count - 1)]  # of the teacher; the student's are 0, 1, ...
    pairs = [(place, count + place) for place in range(count)]  # of the states below, the teacher's first
    moments = PairMoments([both for t, s in pairs for both in ((t, t), (s, s), (t, s))], stride=1)
    same_width = teacher.config.embed_dim == student.config.embed_dim
    sums = torch.zeros(count, 3, dtype=torch.float64)  # |T - S|^2, |T|^2, cosine
    device = next(teacher.parameters()).device
    student.to(device)
    order = np.random.default_rng(0).permutation(len(batches))  # they are sorted by duration
    for index in progress(order, "Comparing student and teacher", len(batches)):
        batch = batches[index]().to(device)
        outputs = aligned(*(encoder(batch.waveforms, batch.lengths) for encoder in (teacher, student)))
        mask = outputs[0].frame_mask()
        states = [outputs[0].layer(layer) for layer in layers] + [outputs[1].layer(layer) for layer in range(count)]
        moments.update(states, mask)
        if same_width:
            sums += torch.stack([_sums(states[t][mask], states[s][mask]) for t, s in pairs])
        if moments.frames >= ENOUGH * teacher.config.embed_dim:
            break
    rows = []
    for layer, pair, (difference, norm, cosine) in zip(layers, pairs, sums.tolist(), strict=True):
        row: dict[str, float] = {"teacher_layer": layer, "student_layer": pair[0]}
        if same_width:
            row |= {"l2": math.sqrt(difference / norm), "cosine": 1 - cosine / moments.frames}
        rows.append(row | {"cka": _cka_distance(moments, pair)})
    write_csv(path, rows)


def _sums(teacher: Tensor, student: Tensor) -> Tensor:  # (frame, channel) each
    similarity = F.cosine_similarity(teacher, student, dim=-1)
    return torch.stack([(teacher - student).square().sum(), teacher.square().sum(), similarity.sum()]).double().cpu()


def _cka_distance(moments: PairMoments, pair: tuple[int, int]) -> float:
    """1 - CKA; not a number for a constant state."""
    norms = [moments.hsic((index, index)) for index in pair]
    return 1 - moments.hsic(pair) / math.sqrt(norms[0] * norms[1]) if min(norms) > 0 else math.nan
