"""How well phones and speakers can be read from a representation, by ridge regression; cheap and deterministic.

Phones: a linear map per layer from a frame to its phone. Speakers: one from an utterance's mean to its speaker.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lhotse.cut import Cut
from torch import Tensor

from distiller.audio.skipped import Skipped
from distiller.probes.representations import Layers, Representation, represented
from distiller.probes.ridge import Ridge, accuracy
from distiller.synthesis.espeak import PHONES
from distiller.synthesis.splits import load_split, phone_targets, speaker_of

Classifiers = tuple[list[Tensor], list[Tensor]]  # by layer: of a frame's phone, of an utterance's speaker


@dataclass
class Probe:
    """The labelled speech for probing, decoded once; train and seen share their speakers, unseen has others."""

    splits: dict[str, list[tuple[Tensor, Tensor, int]]]  # (waveform, phone of each frame, speaker)
    skipped: list[Skipped] = field(default_factory=list)  # none: all synthetic speech can be used

    @classmethod
    def synthetic(cls, frame_count: Callable[[int], int]) -> "Probe":
        """The probe splits of the synthetic corpus."""
        cuts = {split: load_split(f"probe_{split}") for split in ("train", "seen", "unseen")}
        speakers = sorted({speaker_of(cut) for part in cuts.values() for cut in part})
        return cls({split: [_example(cut, speakers, frame_count) for cut in part] for split, part in cuts.items()})

    def run(self, represent: Representation, name: str = "") -> dict[str, Any]:
        """Accuracies in percent of the last layer and of the best one (on seen speakers), and of every layer."""
        return self.test(self.fit(represent, name), represent, name)

    def test(self, fitted: Classifiers, represent: Representation, name: str = "") -> dict[str, Any]:
        """`run`, with classifiers from `fit`, possibly fitted on another representation of the same speech."""
        phones, speakers = fitted
        correct = {key: np.zeros((len(phones), 2)) for key in ("phone", "phone_unseen", "speaker")}
        for split, key in (("seen", "phone"), ("unseen", "phone_unseen")):
            for layers, classes, speaker in self._stream(represent, split, name):
                for index, layer in enumerate(layers):
                    correct[key][index] += accuracy(phones[index], layer, classes)
                    if split == "seen":
                        mean = layer.mean(dim=0, keepdim=True)
                        correct["speaker"][index] += accuracy(speakers[index], mean, torch.tensor([speaker]))
        layers = {key: (100 * counts[:, 0] / counts[:, 1]).round(2).tolist() for key, counts in correct.items()}
        best = int(np.argmax(layers["phone"]))
        row: dict[str, Any] = {key: values[-1] for key, values in layers.items()}
        row |= {"phone_best": layers["phone"][best], "phone_unseen_best": layers["phone_unseen"][best]}
        return row | {"speaker_best": max(layers["speaker"]), "layers": layers}

    def fit(self, represent: Representation, name: str = "") -> Classifiers:
        """Classifiers of phones and of speakers, of every layer."""
        phones: list[Ridge] = []
        speakers: list[Ridge] = []
        classes = 1 + max(speaker for _, _, speaker in self.splits["train"])
        for layers, targets, speaker in self._stream(represent, "train", name):
            if not phones:
                phones = [Ridge(layer.shape[1], len(PHONES)) for layer in layers]
                speakers = [Ridge(layer.shape[1], classes) for layer in layers]
            for index, layer in enumerate(layers):
                phones[index].add(layer, targets)
                speakers[index].add(layer.mean(dim=0, keepdim=True), torch.tensor([speaker]))
        return [ridge.solve() for ridge in phones], [ridge.solve() for ridge in speakers]

    def _stream(self, represent: Representation, split: str, name: str) -> Iterator[tuple[Layers, Tensor, int]]:
        """Every utterance's layers, phones and speaker; similar lengths together."""
        examples = self.splits[split]
        waveforms = [waveform for waveform, _, _ in examples]
        for index, layers in represented(represent, waveforms, f"Probing {name}, {split}"):
            _, phones, speaker = examples[index]
            frames = min(len(layers[0]), len(phones))  # Whisper has a frame or two more
            yield [layer[:frames] for layer in layers], phones[:frames], speaker


def _example(cut: Cut, speakers: list[str], frame_count: Callable[[int], int]) -> tuple[Tensor, Tensor, int]:
    audio = cut.load_audio()  # (channel, sample)
    assert audio is not None
    waveform = torch.from_numpy(audio[0])
    targets = torch.from_numpy(phone_targets(cut, frame_count(len(waveform))))
    return waveform, targets, speakers.index(speaker_of(cut))


def retention(probe: dict[str, dict], key: str) -> float | None:
    """(student - stacked filterbank) / (teacher - stacked filterbank) of one accuracy.

    None when the teacher is no better than the filterbank.
    """
    floor, ceiling = probe["stacked_filterbank"][key], probe["teacher"][key]
    return (probe["student"][key] - floor) / (ceiling - floor) if ceiling > floor else None
