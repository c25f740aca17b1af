"""Probes of degraded speech: what is heard, and that classifiers have not heard it before."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from distiller.augmentation.conditions import conditions
from distiller.probes.phones import Probe
from distiller.probes.representations import Layers, degraded, filterbank
from upstream.errors import UserError

SPEECH = 0.1 * torch.randn(16_000, generator=torch.Generator().manual_seed(0))


def heard(name: str, waveform: Tensor = SPEECH) -> Tensor:
    degrade = list(conditions([name]).values())[1]
    assert degrade is not None
    return degrade(waveform)


@pytest.mark.parametrize("level", ["20", "0", "-7.5"])
def test_noise_has_the_level_that_was_asked_for(level: str) -> None:
    noise = heard(level) - SPEECH
    assert 10 * float((SPEECH.square().mean() / noise.square().mean()).log10()) == pytest.approx(float(level), abs=1e-3)


def test_a_telephone_has_no_high_frequencies_and_a_room_the_same_length() -> None:
    spectrum = torch.fft.rfft(heard("telephone")).abs().square()
    assert float(spectrum[4500:].sum() / spectrum.sum()) < 1e-2
    assert heard("room").shape == SPEECH.shape
    assert not torch.equal(heard("room"), SPEECH)


def test_the_same_recording_is_heard_in_the_same_noise_by_every_model_and_in_any_batch() -> None:
    noisy = degraded(filterbank(), list(conditions(["0"]).values())[1])
    other = 0.5 * SPEECH[:8000]
    (alone,) = [layers[0] for layers in noisy([SPEECH])]
    last = [layers[0] for layers in noisy([other, SPEECH])][1]
    assert torch.equal(alone, last)


def test_clean_speech_comes_first_and_stays_what_it_is() -> None:
    found = conditions(["10", "telephone"])
    assert list(found) == ["clean", "10 dB", "telephone"]
    represent = filterbank()
    assert degraded(represent, found["clean"]) is represent


@pytest.mark.parametrize("name", ["loud", "61", "1.2.3", ""])
def test_another_name_is_one_sentence(name: str) -> None:
    with pytest.raises(UserError, match=rf"--degraded is '{name}', but it must be telephone, room, or a signal-to"):
        conditions([name])


def level(waveforms: list[Tensor]) -> Iterator[Layers]:
    """Four equal frames whose one channel is the waveform's mean."""
    for waveform in waveforms:
        yield [waveform.mean().expand(4, 1)]


def test_classifiers_are_fitted_on_clean_speech() -> None:
    def examples(speaker: int) -> tuple[Tensor, Tensor, int]:
        return torch.full((100,), 1.0 - 2.0 * speaker), torch.full((4,), speaker), speaker

    probe = Probe({split: [examples(0), examples(1)] for split in ("train", "seen", "unseen")})
    fitted = probe.fit(level)
    assert probe.test(fitted, level)["phone"] == 100.0
    turned = probe.test(fitted, degraded(level, lambda waveform: -waveform))
    assert (turned["phone"], turned["phone_unseen"], turned["speaker"]) == (0.0, 0.0, 0.0)
    assert np.allclose(probe.run(level)["layers"]["phone"], [100.0])
