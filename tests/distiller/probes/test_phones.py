from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from distiller.probes.phones import Probe, retention
from distiller.probes.representations import encoder_layers, filterbank
from distiller.probes.ridge import Ridge, accuracy
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder


def test_ridge_finds_the_hand_computed_line() -> None:
    """x in {0, 2}, one class each: scores cross halfway, the constant is not penalised."""
    ridge = Ridge(1, 2)
    ridge.add(torch.tensor([[0.0], [0.0]]), torch.tensor([0, 0]))
    ridge.add(torch.tensor([[2.0], [2.0]]), torch.tensor([1, 1]))
    weights = ridge.solve()
    assert weights[:, 1].tolist() == pytest.approx([0.5, 0.0], abs=2e-3)  # class 1: x / 2
    assert weights[:, 0].tolist() == pytest.approx([-0.5, 1.0], abs=2e-3)
    inputs = torch.tensor([[0.9], [1.1], [-3.0], [5.0]])
    assert accuracy(weights, inputs, torch.tensor([0, 1, 0, 0])) == (3, 4)


def test_ridge_of_a_rescaled_input_is_the_same_classifier() -> None:
    random = torch.Generator().manual_seed(0)
    inputs, classes = torch.randn(200, 5, generator=random), torch.randint(3, (200,), generator=random)
    scores = []
    for scale in (1.0, 1000.0):
        ridge = Ridge(5, 3)
        ridge.add(scale * inputs, classes)
        weights = ridge.solve()
        scores.append(scale * inputs.double() @ weights[:-1] + weights[-1])
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-6, atol=1e-8)


def test_filterbank_makes_the_encoders_frames() -> None:
    config = EncoderConfig(embed_dim=16, num_heads=1, head_dim=16, attention_heads=((0,),), ffn_dims=(8,))
    waveforms = [torch.randn(length) for length in (400, 719, 720, 16_000)]
    for context in (0, 12):
        for waveform, (layer,) in zip(waveforms, filterbank(context)(waveforms), strict=True):
            assert layer.shape == (config.frame_count(len(waveform)), 40 * (2 * context + 1))
    single, stacked = (next(filterbank(context)(waveforms[3:]))[0] for context in (0, 12))
    assert torch.equal(stacked[20, :40], single[8])  # 12 frames back
    assert torch.equal(stacked[20, 480:520], single[20])
    assert torch.equal(stacked[0, :40], single[0])  # the edge repeats


def planted(informative: bool) -> Probe:
    """Frames that are their phone's and speaker's one-hot vector, or noise."""
    random = torch.Generator().manual_seed(1)

    def example(speaker: int) -> tuple[Tensor, Tensor, int]:
        phones = torch.randint(5, (30,), generator=random)
        frames = torch.cat([torch.eye(5)[phones], torch.eye(3)[speaker].expand(30, 3)], dim=1)
        noise = torch.randn(30, 8, generator=random)
        return (frames if informative else noise), phones, speaker

    return Probe({split: [example(index % 3) for index in range(30)] for split in ("train", "seen", "unseen")})


def represent(utterances: list[Tensor]) -> Iterator[list[Tensor]]:
    for frames in utterances:
        yield [torch.zeros_like(frames), frames]


def test_probe_reads_what_is_there_and_nothing_else() -> None:
    row = planted(informative=True).run(represent)
    assert row["speaker"] == 100.0
    assert row["phone"] == 100.0
    assert row["phone_best"] == row["phone"]
    assert row["layers"]["phone"][0] < 40  # the constant layer
    noise = planted(informative=False).run(represent)
    assert noise["phone"] < 40
    assert noise["speaker"] < 75


def test_encoder_layers_are_those_of_each_wav_alone() -> None:
    config = EncoderConfig(
        embed_dim=16, num_heads=2, head_dim=8, attention_heads=((0, 1),) * 2, ffn_dims=(8,) * 2, positional_groups=4,
        conv_layers=((8, 10, 5), *((8, 3, 2),) * 4, *((8, 2, 2),) * 2),
    )  # fmt: skip
    encoder = SpeechEncoder(config).eval()
    waveforms = [torch.randn(5000), torch.randn(3000)]
    for waveform, layers in zip(waveforms, encoder_layers(encoder)(waveforms), strict=True):
        alone = encoder(waveform[None]).hidden_states[1:]
        for layer, expected in zip(layers, alone, strict=True):
            torch.testing.assert_close(layer, expected[0], rtol=0, atol=1e-5)


def test_retention() -> None:
    probe = {
        name: {"phone": value} for name, value in (("stacked_filterbank", 45.0), ("teacher", 75.0), ("student", 60.0))
    }
    assert retention(probe, "phone") == 0.5
    probe["teacher"]["phone"] = 40.0
    assert retention(probe, "phone") is None
