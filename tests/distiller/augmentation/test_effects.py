"""Effects on the samples of an utterance: levels and bands as asked, and nothing moves in time."""

import numpy as np
import pytest

from distiller.augmentation import effects
from upstream.config import SAMPLE_RATE


def speech(seconds=1.0, seed=0):
    """Noise of speech's band with gaps in it, which tells a shift by one sample."""
    random = np.random.default_rng(seed)
    samples = effects.band_limited(random.standard_normal(int(seconds * SAMPLE_RATE), dtype=np.float32), 300, 3000)
    return 0.3 * samples * np.repeat(random.random(len(samples) // 160) > 0.3, 160)


def lag(clean, heard):
    """Samples by which `heard` comes later."""
    product = np.fft.rfft(heard, 2 * len(clean)) * np.fft.rfft(clean, 2 * len(clean)).conj()
    shift = int(np.fft.irfft(product).argmax())
    return shift if shift < len(clean) else shift - 2 * len(clean)


def share_above(samples, hertz):
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) ** 2
    return spectrum[int(hertz * len(samples) / SAMPLE_RATE) :].sum() / spectrum.sum()


def echoes(seconds=0.6, direct=-3.0):
    return effects.decaying_response(np.random.default_rng(1), seconds, direct)


NOISE = effects.coloured_noise(np.random.default_rng(2), 16_000, 1)
EFFECTS = {
    "noise": lambda clean: clean + effects.at_snr(NOISE[: len(clean)], clean, 0),
    "reverberation": lambda clean: effects.reverberated(clean, echoes()),
    "band": lambda clean: effects.band_limited(clean, 200, 3400),
    "gain": lambda clean: effects.amplified(clean, 20, True),
    **{codec: lambda clean, codec=codec: effects.telephoned(clean, codec) for codec in ("linear", *effects.CODECS)},
}


@pytest.mark.parametrize("name", EFFECTS)
@pytest.mark.parametrize("samples", [16_000, 12_345, 401])
def test_nothing_moves(name, samples) -> None:
    clean = speech()[:samples]
    heard = EFFECTS[name](clean)
    assert heard.dtype == np.float32
    assert heard.shape == clean.shape
    assert np.isfinite(heard).all()
    assert samples < 1000 or lag(clean, heard) == 0


@pytest.mark.parametrize("name", ["reverberation", "band", "linear"])
def test_an_impulse_stays_at_its_sample(name) -> None:
    clean = np.zeros(8000, np.float32)
    clean[3001] = 0.5
    heard = EFFECTS[name](clean)
    assert np.abs(heard).argmax() == 3001
    if name == "reverberation":
        assert np.abs(heard[:3001]).max() < 1e-6


@pytest.mark.parametrize("snr", [-5.0, 12.0])
@pytest.mark.parametrize("colour", [0.0, 2.0])
def test_noise_has_its_level_and_colour(snr, colour) -> None:
    clean = speech()
    noise = effects.coloured_noise(np.random.default_rng(3), len(clean), colour)
    added = effects.at_snr(noise, clean, snr)
    assert 10 * np.log10(effects.power(clean) / effects.power(added)) == pytest.approx(snr, abs=1e-3)
    fall = 10 * np.log10((share_above(noise, 500) - share_above(noise, 1000)) / (share_above(noise, 4000) or 1))
    assert fall == pytest.approx(10 * np.log10(500 / 4000) if colour == 0 else 10 * np.log10(8), abs=1.5)


def test_silence_adds_nothing() -> None:
    assert not effects.at_snr(np.zeros(100, np.float32), speech(), 0).any()


@pytest.mark.parametrize("direct", [-3.0, 12.0])
def test_echoes_decay_and_have_their_level(direct) -> None:
    response = echoes(seconds=0.5, direct=direct)
    energy = response.astype(float) ** 2
    assert energy.sum() == pytest.approx(1, abs=1e-4)
    assert 10 * np.log10(energy[0] / energy[1:].sum()) == pytest.approx(direct, abs=0.05)
    first, last = energy[400:1200].mean(), energy[6400:7200].mean()  # 6,000 of 8,000 samples apart: 45 dB
    assert 10 * np.log10(first / last) == pytest.approx(45, abs=1.5)


def test_a_recorded_response_begins_with_its_direct_sound() -> None:
    recorded = np.zeros(4000, np.float32)
    recorded[[700, 900]] = -0.8, 0.4
    response = effects.from_direct_sound(recorded)
    assert response[0] == pytest.approx(2 / np.sqrt(5))
    assert response[200] == pytest.approx(-1 / np.sqrt(5))
    assert len(response) == 3300


def test_what_is_outside_the_band_is_removed() -> None:
    white = np.random.default_rng(4).standard_normal(32_000, dtype=np.float32)
    heard = effects.band_limited(white, 300, 3400)
    assert share_above(white, 3450) > 0.5
    assert share_above(heard, 3450) < 1e-6
    assert 1 - share_above(heard, 290) < 1e-6
    assert effects.power(heard) > 0.5 * effects.power(white) * 3100 / 8000


@pytest.mark.parametrize("codec", ["linear", *effects.CODECS])
def test_a_telephone_passes_speech_and_nothing_above_its_band(codec) -> None:
    white = np.random.default_rng(5).standard_normal(32_000, dtype=np.float32)
    heard = effects.telephoned(white, codec)
    assert share_above(heard, 3450) < {"linear": 1e-6, "gsm": 0.15}.get(codec, 0.01)
    assert share_above(heard, 4020) < 1e-4
    voice = effects.band_limited(white, 400, 2800) * np.float32(0.01)
    error = effects.telephoned(voice, codec) - voice
    least = {"linear": 50, "gsm": 3}.get(codec, 30)
    assert 10 * np.log10(effects.power(voice) / effects.power(error)) > least


def test_gain_is_in_decibels_and_clips_if_it_may() -> None:
    clean = speech()
    assert effects.power(effects.amplified(clean, -6, True)) == pytest.approx(effects.power(clean) * 10**-0.6, rel=1e-4)
    assert np.abs(effects.amplified(clean, 30, True)).max() == 1.0
    assert np.abs(effects.amplified(clean, 30, False)).max() > 1.0
