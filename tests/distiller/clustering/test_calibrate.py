"""From a teacher and audio to clusters of its layers: a planted teacher, and how much audio is used."""

import csv
import json

import numpy as np
import pytest
import torch
from torch import nn

from distiller.audio.batch import Batch
from distiller.audio.decoding import Decoder
from distiller.clustering.calibrate import CalibrationAudio, calibrate, cluster_layers, measure
from distiller.corpora.corpus import open_audio
from distiller.objectives.config import CalibrationConfig, ClustersConfig
from distiller.objectives.registry import build
from tests.distiller.clustering.shapes import CONFIG
from upstream.config import EncoderConfig
from upstream.encoder import EncoderOutput, SpeechEncoder
from upstream.errors import UserError
from upstream.extractor import frame_mask

BLOCKS = [[0, 1, 2], [3, 4], [5, 6, 7, 8]]


class Planted(nn.Module):
    """A teacher whose layers are views of three unrelated signals, one per block, padded frames full of NaN."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.config = EncoderConfig(
            embed_dim=width,
            num_heads=1,
            head_dim=width,
            attention_heads=((0,),) * 8,
            ffn_dims=(4,) * 8,
            conv_layers=((1, 1, 1),),
            positional_groups=1,
        )
        generator = torch.Generator().manual_seed(0)
        mix = torch.randn(9, width, width, generator=generator)
        self.views = nn.Parameter(torch.linalg.qr(mix)[0] + 0.1 * torch.randn(mix.shape, generator=generator))

    def forward(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> EncoderOutput:
        generator = torch.Generator().manual_seed(int(waveforms[0, 0] * 1000))
        signals = torch.randn(3, *waveforms.shape, self.config.embed_dim, generator=generator)
        states = []
        for block, layers in enumerate(BLOCKS):
            states += [signals[block] @ self.views[layer] + 3.0 for layer in layers]
        padding = ~frame_mask(lengths, waveforms.shape[1])
        states = [state.masked_fill(padding[..., None], float("nan")) for state in states]
        nothing = torch.full_like(states[0], float("nan"))
        return EncoderOutput(states[0], [nothing, *states[1:]], states[-1], lengths)


def planted_batches(count: int = 4, samples: int = 300):
    def load(index: int) -> Batch:
        lengths = torch.tensor([samples, samples // 2])
        return Batch(torch.full((2, samples), index / 10.0), lengths, ["a", "b"], ["", ""], [])

    return [lambda index=index: load(index) for index in range(count)]


def test_a_planted_teacher_is_recovered():
    similarity = measure(ClustersConfig(), Planted(), planted_batches())
    assert similarity.layers == list(range(9))
    assert similarity.calibration["frames"] == 4 * (60 + 30)
    inside = np.zeros((9, 9), dtype=bool)
    for block in BLOCKS:
        inside[np.ix_(block, block)] = True
    assert similarity.cka[inside].min() > 0.8
    assert similarity.cka[~inside].max() < 0.2


def test_layers_and_what_layer_zero_is():
    similarity = measure(ClustersConfig(layers=[3, 1]), Planted(), planted_batches())
    assert similarity.layers == [1, 3]
    assert similarity.cka.shape == (2, 2)
    with pytest.raises(UserError, match="constant or not finite"):
        measure(ClustersConfig(layer_zero="transformer_input"), Planted(), planted_batches())  # the planted F^0 is NaN
    with pytest.raises(UserError, match=r"objective.layers is \[9\]"):
        measure(ClustersConfig(layers=[9]), Planted(), planted_batches())


def test_few_frames_warn_and_fewer_are_refused():
    plain, debiased = (ClustersConfig(calibration=CalibrationConfig(debiased=debiased)) for debiased in (False, True))
    with pytest.warns(UserWarning, match="90 frames, fewer than 20 for each of the teacher's 8 channels"):
        measure(plain, Planted(), planted_batches(count=1))
    with pytest.raises(UserError, match="8 frames, no more than the teacher's 8 channels"):
        measure(plain, Planted(), planted_batches(count=1, samples=25))
    similarity = measure(debiased, Planted(), planted_batches(count=1, samples=25))
    assert similarity.calibration["frames"] == 8


@pytest.mark.parametrize("debiased", [False, True])
def test_fewer_frames_than_asked_for_warn(debiased):
    asked = ClustersConfig(calibration=CalibrationConfig(frames=400, debiased=debiased))
    with pytest.warns(UserWarning, match="gives 360 frames, fewer than the 400 requested") as caught:
        measure(asked, Planted(), planted_batches())
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="90 frames, fewer than") as caught:
        measure(asked, Planted(), planted_batches(count=1))
    assert len(caught) == 1


@pytest.mark.filterwarnings("error")
def test_as_many_frames_as_asked_for_do_not_warn():
    measure(ClustersConfig(calibration=CalibrationConfig(frames=360)), Planted(), planted_batches())
    measure(ClustersConfig(), Planted(), planted_batches())


def opened(folder, longest: float = 2.0) -> CalibrationAudio:
    return CalibrationAudio(str(folder), open_audio(str(folder), longest, Decoder(CONFIG.min_samples)), longest)


def not_opened() -> CalibrationAudio:
    raise AssertionError("the audio was opened")


def test_calibration_takes_as_much_audio_as_is_wanted(audio):
    encoder, files = SpeechEncoder(CONFIG), opened(audio)
    few = calibrate(ClustersConfig(calibration=CalibrationConfig(frames=200)), encoder, files)
    assert 200 <= few.calibration["frames"] < 400
    assert few.calibration["corpus"] == str(audio)
    again = calibrate(ClustersConfig(calibration=CalibrationConfig(frames=200)), encoder, files)
    np.testing.assert_array_equal(few.cka, again.cka)
    other = calibrate(ClustersConfig(calibration=CalibrationConfig(frames=200)), encoder, files, seed=2)
    assert not np.array_equal(few.cka, other.cka)


def test_clusters_are_found_once_and_go_into_the_objective(audio, tmp_path):
    torch.manual_seed(0)
    encoder = SpeechEncoder(CONFIG)
    config = ClustersConfig(count=3, target="representative")
    found = cluster_layers(config, encoder, lambda: opened(audio), tmp_path)
    assert len(found.clusters) == 3
    assert sorted(layer for cluster in found.clusters for layer in cluster) == [0, 1, 2, 3, 4]
    written = json.loads((tmp_path / "clusters.json").read_text())
    assert {"layers", "cka", "linkage", "clusters", "calibration"} <= written.keys()
    assert written["clusters"] == found.clusters
    assert all(layer in cluster for layer, cluster in zip(found.representatives, found.clusters, strict=True))
    assert (tmp_path / "similarity.png").stat().st_size > 10_000
    with (tmp_path / "cka.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["layer", "P", "1", "2", "3", "4"]
    np.testing.assert_allclose(np.array([row[1:] for row in rows[1:]], dtype=float), written["cka"], atol=1e-8)

    again = cluster_layers(config, encoder, not_opened, tmp_path)
    assert again == found
    objective = build(found, CONFIG, CONFIG)
    assert [match.teacher for match in objective.matches] == [(layer,) for layer in found.representatives]


def test_clusters_by_hand_need_no_audio(tmp_path):
    config = ClustersConfig(clusters=[[0, 1], [2, 3, 4]])
    assert cluster_layers(config, SpeechEncoder(CONFIG), not_opened, tmp_path) is config
    assert not list(tmp_path.iterdir())


def test_more_clusters_than_layers(audio, tmp_path):
    with pytest.raises(UserError, match="5 layers cannot be divided into 9 clusters"):
        cluster_layers(ClustersConfig(count=9), SpeechEncoder(CONFIG), lambda: opened(audio), tmp_path)
