"""Query by example: does a word's nearest recording by somebody else hold the same word?"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from distiller.audio.skipped import Skipped
from distiller.probes.dtw import dtw_distances
from distiller.probes.recordings import Recordings, load_recordings
from distiller.probes.representations import Representation, represented
from upstream.config import SAMPLE_RATE
from upstream.errors import UserError

MIN_SAMPLES = SAMPLE_RATE // 40
LONGEST = 10.0  # seconds of a word or a phrase; an alignment costs time by its square


@dataclass
class Words:
    """Recordings of the same words by several groups: other speakers, other channels."""

    groups: Recordings
    skipped: list[Skipped] = field(default_factory=list)

    @classmethod
    def load(cls, folder: Path, min_samples: int = MIN_SAMPLES) -> "Words":
        """The recordings FOLDER/GROUP/WORD.flac.

        Raises:
            UserError: there are fewer than two groups, or no word is in two of them.
        """
        groups, skipped = load_recordings(folder, min_samples, LONGEST)
        if not any(first.keys() & second.keys() for first, second in combinations(groups.values(), 2)):
            raise UserError(f"no two folders of {folder} ({', '.join(groups)}) have a recording of the same name")
        return cls(groups, skipped)

    def run(self, represent: Representation, name: str = "") -> dict[str, object]:
        """Percent of the recordings whose nearest in another group is of the same word, over all pairs of groups.

        Recordings whose word the other group does not have are no queries; it is sought among all of the other's.
        "word" is of the last layer, "word_best" of the best; "layers" has those of every layer, also from one group to
        another.
        """
        keys = [(group, word) for group, items in self.groups.items() for word in items]
        waveforms = [self.groups[group][word] for group, word in keys]
        frames: list[list[Tensor]] = [[] for _ in keys]  # by recording and layer
        for index, layers in represented(represent, waveforms, f"Probing {name}, words"):
            frames[index] = [normalised(layer) for layer in layers]
        by_group = {group: [index for index, key in enumerate(keys) if key[0] == group] for group in self.groups}
        hits: dict[str, list[NDArray[np.bool_]]] = {}
        for layer in range(len(frames[0])):
            for first, second in combinations(self.groups, 2):
                sides = [by_group[first], by_group[second]]
                distances = dtw_distances(*([frames[index][layer] for index in side] for side in sides)).numpy()
                words = [[keys[index][1] for index in side] for side in sides]
                hits.setdefault(f"{first} to {second}", []).append(_hits(distances, *words))
                hits.setdefault(f"{second} to {first}", []).append(_hits(distances.T, *words[::-1]))
        counted = {"word": [np.concatenate(layer) for layer in zip(*hits.values(), strict=True)]} | hits
        layers = {key: [round(100 * float(np.mean(layer)), 2) for layer in rows] for key, rows in counted.items()}
        return {"word": layers["word"][-1], "word_best": max(layers["word"]), "layers": layers}


def normalised(frames: Tensor) -> Tensor:
    """(frame, channel): without the recording's mean, which holds its channel and speaker; each frame of length 1."""
    return F.normalize(frames - frames.mean(dim=0), dim=1)


def _hits(distances: NDArray[np.float32], queries: Sequence[str], items: Sequence[str]) -> NDArray[np.bool_]:
    """Whether the nearest item has the query's word, for each query whose word is there; distances (query, item)."""
    hits = np.array(items)[distances.argmin(axis=1)] == np.array(queries)
    return hits[np.isin(queries, items)]
