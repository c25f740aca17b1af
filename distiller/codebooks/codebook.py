"""Codebooks: k-means, and a residual quantiser of several k-means stages, each on the residual of those before."""

import warnings

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor
from torch.nn import functional as F

from upstream.errors import UserError

ITERATIONS = 30  # of k-means


def normalised(states: Tensor, norm: str) -> Tensor:
    """States (frame, channel) in fp32 as they are quantised; "frame": mean 0 and variance 1 over a frame's channels."""
    states = states.float()
    return F.layer_norm(states, states.shape[-1:]) if norm == "frame" else states


def fit(features: Tensor, units: int, stages: int, seed: int) -> Tensor:
    """Centroids of features (frame, channel): (stage, unit, channel).

    Raises:
        UserError: fewer frames than units.
    """
    if len(features) < units:
        raise UserError(f"--units is {units}, but it must be at most {len(features)}, the number of sampled frames")
    random, residual, fitted = np.random.default_rng(seed), features.float().cpu(), []
    for _ in range(stages):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a cluster without frames keeps its centroid
            first = spread_frames(residual, units, random).numpy()
            centroids, _ = kmeans2(residual.numpy(), first, iter=ITERATIONS, minit="matrix")
        fitted.append(torch.from_numpy(np.asarray(centroids, np.float32)))
        residual = residual - fitted[-1][nearest(residual, fitted[-1])]
    return torch.stack(fitted)


def spread_frames(features: Tensor, units: int, random: np.random.Generator) -> Tensor:
    """Frames to begin k-means with, each drawn by its squared distance from those before (k-means++): (unit, channel).

    Arthur and Vassilvitskii, 2007. SciPy's own recomputes every distance for each, which takes hours for 500 units.
    """
    chosen = [int(random.integers(len(features)))]
    distances = torch.full((len(features),), torch.inf)
    for _ in range(units - 1):
        distances = torch.minimum(distances, (features - features[chosen[-1]]).square().sum(dim=1))
        weights = distances.double().numpy()
        total = weights.sum()  # 0 if all frames have been chosen or are copies of chosen ones
        chosen.append(int(random.choice(len(features), p=weights / total if total else None)))
    return features[chosen]


def nearest(features: Tensor, centroids: Tensor) -> Tensor:
    """(frame, channel), (unit, channel) -> (frame,) int64: the unit of the nearest centroid."""
    return (centroids.square().sum(dim=1) - 2 * features @ centroids.T).argmin(dim=1)


def quantise(features: Tensor, codebook: Tensor) -> Tensor:
    """(frame, channel), (stage, unit, channel) -> units (frame, stage) int64."""
    columns = []
    for centroids in codebook:
        columns.append(nearest(features, centroids))
        features = features - centroids[columns[-1]]
    return torch.stack(columns, dim=1)
