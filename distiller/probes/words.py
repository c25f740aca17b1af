"""Query by example: is the recording nearest to a word, by somebody else, of the same word?"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from distiller.audio.skipped import Skipped
from distiller.probes.dtw import dtw_distances
from distiller.probes.recordings import load_recordings
from distiller.probes.representations import FRAME, Representation, represented
from upstream.errors import UserError


@dataclass
class Words:
    """Recordings of the same words by several groups: other speakers, other channels."""

    groups: dict[str, dict[str, Tensor]]  # by group and word: (sample,)
    skipped: list[Skipped] = field(default_factory=list)

    @classmethod
    def load(cls, folder: Path, min_samples: int = FRAME) -> "Words":
        """The recordings FOLDER/GROUP/WORD.flac, or any other audio.

        Raises:
            UserError: the folder cannot be read, or no word is in two of its groups.
        """
        recordings, skipped = load_recordings(folder, min_samples)
        groups: dict[str, dict[str, Tensor]] = {}
        for name, waveform in recordings.items():
            group, _, word = name.partition("/")
            if word:  # files beside the groups belong to none
                groups.setdefault(group, {})[word] = waveform
        if not any(first.keys() & second.keys() for first, second in combinations(groups.values(), 2)):
            raise UserError(
                f"{folder} must contain the same WORD as GROUP/WORD.flac in two GROUP folders, but has none"
            )
        return cls(groups, skipped)

    def run(self, represent: Representation, name: str = "") -> dict[str, Any]:
        """Percent of recordings whose nearest neighbour in another group is of the same word, over all pairs of groups.

        Recordings whose word is not in the other group are not queries; the candidates are all recordings of the other
        group. "word" is for the last layer, "word_best" for the best; "layers" has every layer's, also for each pair of
        groups.
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
    """(frame, channel): minus the recording's mean, which encodes channel and speaker; frames have unit norm."""
    return F.normalize(frames - frames.mean(dim=0), dim=1)


def _hits(distances: NDArray[np.float32], queries: Sequence[str], items: Sequence[str]) -> NDArray[np.bool_]:
    """For each query whose word is among the items, whether the nearest one has it; distances (query, item)."""
    hits = np.array(items)[distances.argmin(axis=1)] == np.array(queries)
    return hits[np.isin(queries, items)]
