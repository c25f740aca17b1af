"""The class of a recording: a speaker, a language, or whatever a folder's subfolders are."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distiller.audio.skipped import Skipped
from distiller.probes.recordings import load_recordings
from distiller.probes.representations import FRAME, Representation, represented
from distiller.probes.ridge import Ridge
from upstream.errors import UserError


class Example(NamedTuple):
    """A recording: its class by number, and the fold in which it is tested."""

    waveform: Tensor  # (sample,)
    label: int
    fold: str


@dataclass
class Classes:
    """Recordings of several classes in folds; each fold is classified by training on the others."""

    names: list[str]
    examples: list[Example]
    skipped: list[Skipped] = field(default_factory=list)

    @classmethod
    def load(cls, folder: Path, min_samples: int = FRAME) -> "Classes":
        """The recordings FOLDER/CLASS/GROUP/NAME.flac, a fold for each GROUP; or FOLDER/CLASS/NAME.flac in two folds.

        If groups are different speakers or channels, only what speakers of a class share identifies it. Without groups,
        a NAME is in the same fold for all classes, so that a class cannot be recognised by its words.

        Raises:
            UserError: the folder cannot be read, or a class is missing from the training folds.
        """
        recordings, skipped = load_recordings(folder, min_samples)
        paths = [Path(name).parts for name in recordings]
        names = sorted({path[0] for path in paths if len(path) > 1})
        examples = [
            Example(waveform, names.index(path[0]), _fold(path))
            for path, waveform in zip(paths, recordings.values(), strict=True)
            if len(path) > 1
        ]
        folds = {example.fold for example in examples}
        if len(names) < 2 or len(folds) < 2:
            found = f"classes: {', '.join(names) or 'none'}; folds: {', '.join(sorted(folds)) or 'none'}"
            raise UserError(
                f"{folder} must contain CLASS/NAME.flac or CLASS/GROUP/NAME.flac of two classes and groups ({found})"
            )
        return cls(names, examples, skipped)

    def run(self, represent: Representation, name: str = "") -> dict[str, Any]:
        """Percent of recordings classified correctly by a linear map or the nearest centroid, averaged over classes.

        Both get the mean of a recording's frames. "linear" and "centroid" are for the last layer, with _best for the
        best; "layers" has those of every layer.
        """
        waveforms = [example.waveform for example in self.examples]
        means: list[list[Tensor]] = [[] for _ in waveforms]
        for index, layers in represented(represent, waveforms, f"Probing {name}, classes"):
            means[index] = [layer.mean(dim=0) for layer in layers]
        rows = [self._accuracies(torch.stack(layer)) for layer in zip(*means, strict=True)]
        layers = {kind: [row[kind] for row in rows] for kind in ("linear", "centroid")}
        best = {f"{kind}_best": max(values) for kind, values in layers.items()}
        row: dict[str, Any] = {kind: values[-1] for kind, values in layers.items()}
        return row | best | {"layers": layers}

    def _accuracies(self, means: Tensor) -> dict[str, float]:
        """means (recording, channel)."""
        labels = torch.tensor([example.label for example in self.examples])
        found = {"linear": torch.empty_like(labels), "centroid": torch.empty_like(labels)}
        for test in self._folds():
            train, classes = means[~test], labels[~test]
            found["linear"][test] = linear(train, classes, means[test])
            found["centroid"][test] = nearest_centroid(train, classes, means[test])
        return {kind: recall(guesses, labels) for kind, guesses in found.items()}

    def _folds(self) -> Iterator[Tensor]:
        """For each fold, which recordings are in it: (recording,)."""
        folds = [example.fold for example in self.examples]
        for fold in sorted(set(folds)):
            yield torch.tensor([one == fold for one in folds])


def _fold(path: tuple[str, ...]) -> str:
    return path[1] if len(path) > 2 else f"half {zlib.crc32(Path(*path).name.encode()) % 2}"


def recall(guesses: Tensor, labels: Tensor) -> float:
    """Percent of a class's recordings that are recognised, averaged over classes."""
    shares = [float((guesses[labels == label] == label).double().mean()) for label in labels.unique()]
    return round(100 * sum(shares) / len(shares), 2)


def linear(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    """(recording,) classes of `test` by ridge regression on `train`, both (recording, channel)."""
    ridge = Ridge(train.shape[1], 1 + int(labels.max()))
    ridge.add(train, labels)
    weights = ridge.solve()
    return (test.double() @ weights[:-1] + weights[-1]).argmax(dim=1)


def nearest_centroid(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    """(recording,) classes of `test` whose mean in `train` is nearest; both (recording, channel)."""
    known = labels.unique()
    centroids = torch.stack([train[labels == label].mean(dim=0) for label in known])
    return known[torch.cdist(test, centroids).argmin(dim=1)]
