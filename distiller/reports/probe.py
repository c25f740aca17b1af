"""How well phones and speakers can be read from a representation, by ridge regression; cheap and deterministic.

Phones: a linear map per layer from a frame to its phone. Speakers: one from an utterance's mean to its speaker.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torchaudio
from lhotse.cut import Cut
from torch import Tensor
from torch.nn import functional as F

from distiller.common.progress import progress
from distiller.synthesis.espeak import PHONES
from distiller.synthesis.splits import load_split, phone_targets, speaker_of
from upstream.config import SAMPLE_RATE
from upstream.encoder import SpeechEncoder

RIDGE = 1e-3  # relative to the mean variance of the inputs
CONTEXT = 12  # frames to either side of the stacked filterbank
MELS = 40
BATCH = 8

Layers = list[Tensor]  # per layer (frame, channel) of one utterance
Representation = Callable[[list[Tensor]], Iterator[Layers]]  # waveforms -> one entry per utterance


def encoder_layers(encoder: SpeechEncoder) -> Representation:
    """F^1..F^L of an encoder."""

    @torch.inference_mode()
    def represent(waveforms: list[Tensor]) -> Iterator[Layers]:
        lengths = torch.tensor([len(waveform) for waveform in waveforms])
        output = encoder(torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True), lengths)
        for index, frames in enumerate(output.frame_lengths.tolist()):
            yield [state[index, :frames] for state in output.hidden_states[1:]]

    return represent


def filterbank(context: int = 0) -> Representation:
    """Log-mel energies on the encoders' frames (400 samples every 320), optionally stacked over +-`context` frames."""
    mel = torchaudio.transforms.MelSpectrogram(SAMPLE_RATE, n_fft=400, hop_length=320, n_mels=MELS, center=False)

    def represent(waveforms: list[Tensor]) -> Iterator[Layers]:
        for waveform in waveforms:
            energies = torch.log(mel(waveform) + 1e-6).T  # (frame, mel)
            padded = F.pad(energies.T, (context, context), mode="replicate").T if context else energies
            yield [torch.cat([padded[shift : shift + len(energies)] for shift in range(2 * context + 1)], dim=1)]

    return represent


class Ridge:
    """Ridge regression onto one-hot classes from streamed sums: memory does not grow with the data."""

    def __init__(self, width: int, classes: int) -> None:
        self.inputs = torch.zeros(width + 1, width + 1, dtype=torch.float64)  # sum of x x', x extended by a constant 1
        self.outputs = torch.zeros(width + 1, classes, dtype=torch.float64)  # sum of x y'

    def add(self, inputs: Tensor, classes: Tensor) -> None:
        """inputs (example, channel), classes (example,)."""
        extended = F.pad(inputs.double(), (0, 1), value=1.0)
        self.inputs += extended.T @ extended
        self.outputs.T.index_add_(0, classes, extended)

    def solve(self) -> Tensor:
        """(channel + 1, class), the constant unpenalised and inputs on their own scale."""
        count = self.inputs[-1, -1]
        mean = self.inputs[-1] / count
        spread = (self.inputs.diagonal() / count - mean.square()).clamp(min=0.0)
        scale = spread[:-1].mean().clamp(min=1e-12)
        penalty = torch.full_like(mean, float(RIDGE * scale * count))
        penalty[-1] = 1e-9 * count
        return torch.linalg.solve(self.inputs + penalty.diag(), self.outputs)


def accuracy(weights: Tensor, inputs: Tensor, classes: Tensor) -> tuple[int, int]:
    """Number of correct examples, and of all."""
    scores = inputs.double() @ weights[:-1] + weights[-1]
    return int((scores.argmax(dim=1) == classes).sum()), len(classes)


@dataclass
class Probe:
    """The labelled speech for probing, decoded once. train and seen have the same speakers, unseen has others."""

    splits: dict[str, list[tuple[Tensor, Tensor, int]]]  # (waveform, phone of each frame, speaker)

    @classmethod
    def synthetic(cls, frame_count: Callable[[int], int]) -> "Probe":
        """The probe splits of the synthetic corpus."""
        cuts = {split: load_split(f"probe_{split}") for split in ("train", "seen", "unseen")}
        speakers = sorted({speaker_of(cut) for part in cuts.values() for cut in part})
        return cls({split: [_example(cut, speakers, frame_count) for cut in part] for split, part in cuts.items()})

    def run(self, represent: Representation, name: str = "") -> dict[str, object]:
        """Accuracies in percent of the last layer and of the best one (on seen speakers), and of every layer."""
        phones, speakers = self._fit(represent, name)
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
        row: dict[str, object] = {key: values[-1] for key, values in layers.items()}
        row |= {"phone_best": layers["phone"][best], "phone_unseen_best": layers["phone_unseen"][best]}
        return row | {"speaker_best": max(layers["speaker"]), "layers": layers}

    def _fit(self, represent: Representation, name: str) -> tuple[list[Tensor], list[Tensor]]:
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
        examples = sorted(self.splits[split], key=lambda example: len(example[0]))
        for start in progress(range(0, len(examples), BATCH), f"Probing {name}, {split}"):
            batch = examples[start : start + BATCH]
            outputs = represent([waveform for waveform, _, _ in batch])
            for layers, (_, phones, speaker) in zip(outputs, batch, strict=True):
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
