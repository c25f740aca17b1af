from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from distiller.probes.classes import Classes, Example, linear, nearest_centroid, recall
from upstream.errors import UserError


def represent(utterances: list[Tensor]) -> Iterator[list[Tensor]]:
    for frames in utterances:
        yield [torch.zeros_like(frames), frames]


def planted(shared: bool) -> Classes:
    """Two languages of two speakers each; a frame holds its language and its speaker, or its speaker alone."""
    random = torch.Generator().manual_seed(0)
    examples = []
    for language, group, _ in np.ndindex(2, 2, 12):
        frames = 0.1 * torch.randn(20, 6, generator=random)
        frames[:, 2 * language + group] += 1  # of this speaker alone
        frames[:, 4 + language] += 2 * shared
        examples.append(Example(frames, language, f"speaker {group}"))
    return Classes(["fr", "it"], examples)


def test_what_the_speakers_of_a_class_share_is_found() -> None:
    row = planted(shared=True).run(represent)
    assert (row["linear"], row["centroid"]) == (100.0, 100.0)
    layers = row["layers"]
    assert isinstance(layers, dict)
    assert layers["linear"][0] == layers["centroid"][0] == 50.0  # a constant: all of one class


def test_a_speaker_tells_nothing_of_the_language_of_another() -> None:
    row = planted(shared=False).run(represent)
    assert isinstance(row["linear"], float)
    assert 20 <= row["linear"] <= 80


def test_classes_have_equal_weight() -> None:
    labels = torch.tensor([0] * 9 + [1])
    assert recall(torch.zeros(10, dtype=torch.int64), labels) == 50.0


@pytest.mark.parametrize("classify", [linear, nearest_centroid])
def test_a_representation_of_another_scale_changes_nothing(classify) -> None:
    train = torch.tensor([[0.0, 0.0], [0.0, 2.0], [1.0, 0.0], [1.0, 2.0]])
    labels, test = torch.tensor([0, 0, 2, 2]), torch.tensor([[0.1, 2.0], [0.9, 0.0]])
    assert classify(train, labels, test).tolist() == [0, 2]
    assert classify(1000 * train, labels, 1000 * test).tolist() == [0, 2]


def write(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(seed).standard_normal(1600), 16_000)


def test_a_name_is_in_the_same_fold_for_every_class(tmp_path: Path) -> None:
    for speaker in ("anna", "bert"):
        for word in range(8):
            write(tmp_path / speaker / f"{word}.wav")
    loaded = Classes.load(tmp_path)
    folds = [[example.fold for example in loaded.examples if example.label == label] for label in (0, 1)]
    assert loaded.names == ["anna", "bert"]
    assert folds[0] == folds[1]
    assert set(folds[0]) == {"half 0", "half 1"}


def test_groups_below_a_class_are_the_folds(tmp_path: Path) -> None:
    for language, group in (("fr", "studio"), ("fr", "telephone"), ("it", "studio"), ("it", "telephone")):
        write(tmp_path / language / group / "one.wav")
    assert [example.fold for example in Classes.load(tmp_path).examples] == ["studio", "telephone"] * 2


@pytest.mark.parametrize("paths", [["fr/a/1.wav", "fr/b/1.wav"], ["fr/a/1.wav", "it/a/1.wav"], ["1.wav", "2.wav"]])
def test_one_class_or_one_group_is_too_few(paths: list[str], tmp_path: Path) -> None:
    for path in paths:
        write(tmp_path / path)
    with pytest.raises(UserError, match=r"must contain CLASS/NAME\.flac or CLASS/GROUP/NAME\.flac"):
        Classes.load(tmp_path)
