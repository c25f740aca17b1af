"""The front end of log-mel energies: HuBERT's frames, exact in batches, chunks, files and every export."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchaudio
from torch import Tensor

from distiller.exporters.transformers import to_transformers
from upstream.checkpoint import load, save
from upstream.chunked import extract
from upstream.config import BASE_CONV_LAYERS, EncoderConfig
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError
from upstream.mel_extractor import MelExtractor

FRONT_END: dict[str, Any] = {"mel_bins": 80, "conv_bias": True, "conv_layers": ((24, 3, 2),)}


def noise(samples: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def encoder(tiny_encoder: Callable[..., SpeechEncoder]) -> SpeechEncoder:
    return tiny_encoder(**FRONT_END)


@pytest.fixture
def extractor(encoder: SpeechEncoder) -> MelExtractor:
    assert isinstance(encoder.feature_extractor, MelExtractor)
    return encoder.feature_extractor


def test_energies_are_those_of_torchaudio(extractor: MelExtractor) -> None:
    options: dict[str, Any] = {"n_fft": 400, "hop_length": 160, "n_mels": 80, "norm": "slaney", "mel_scale": "slaney"}
    reference = torchaudio.transforms.MelSpectrogram(16_000, center=False, **options)
    waveform = noise(16_000)[None]
    torch.testing.assert_close(extractor.energies(waveform), reference(waveform).log10(), atol=1e-4, rtol=1e-4)


def test_frames_are_those_of_huberts_convolutions(encoder: SpeechEncoder, tiny_config: Any) -> None:
    convolutions = EncoderConfig(**{**tiny_config().to_dict(), "conv_layers": BASE_CONV_LAYERS, "projection": True})
    config = encoder.config
    assert (config.samples_per_frame, config.min_samples) == (320, 400)
    assert all(config.frame_count(n) == convolutions.frame_count(n) for n in range(400, 2500))
    with torch.no_grad():
        for samples in (400, 719, 720, 1039, 1040, 1200):
            assert encoder(noise(samples)).projected.shape[1] == config.frame_count(samples)


def test_a_frame_is_of_720_samples_around_huberts(extractor: MelExtractor) -> None:
    waveform, frame = noise(8000)[None].requires_grad_(), 10
    moments = (torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
    padded = torch.nn.functional.pad(waveform, (160, 160))
    extractor._frames(extractor.energies(padded), moments)[0, frame].sum().backward()
    assert waveform.grad is not None
    (seen,) = waveform.grad[0].nonzero(as_tuple=True)
    # a window's outermost sample has no weight
    assert (int(seen.min()), int(seen.max())) == (320 * frame - 160 + 1, 320 * frame + 560 - 1)


def test_a_wav_is_the_same_in_every_batch_and_in_chunks(encoder: SpeechEncoder) -> None:
    first, second, long = noise(16_000), noise(7_777, 1), noise(50_123, 2)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            batch, alone = encoder([first, second, noise(400, 3)]), encoder(second)
        for together, states in zip(batch.hidden_states, alone.hidden_states, strict=True):
            torch.testing.assert_close(together[1, : states.shape[1]], states[0], atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        whole = encoder(long)
    for chunked, states in zip(extract(encoder, long, 1.0, 10.0), whole.hidden_states, strict=True):
        torch.testing.assert_close(chunked, states[0], atol=1e-5, rtol=1e-4)


def test_level_does_not_matter_and_silence_is_finite(encoder: SpeechEncoder) -> None:
    with torch.no_grad():
        loud, quiet = encoder(noise(16_000)), encoder(0.01 * noise(16_000))
        torch.testing.assert_close(quiet.last_hidden_state, loud.last_hidden_state, atol=1e-3, rtol=1e-3)
        for wav in (torch.zeros(8000), torch.full((8000,), 0.5), torch.cat([torch.zeros(8000), noise(400)])):
            assert bool(encoder(wav).last_hidden_state.isfinite().all())
    with torch.inference_mode():
        encoder(noise(8000))  # what it keeps of this must serve gradients, too
    waveform = torch.zeros(1, 8000, requires_grad=True)
    encoder(waveform).last_hidden_state.square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in encoder.parameters() if p.grad is not None)


def test_a_stream_begins_with_the_statistics_of_ordinary_speech(tiny_encoder: Callable[..., SpeechEncoder]) -> None:
    """Frame 0: two columns normalised by mean -4 and variance 2, the third by 25 such blocks and the one before it."""
    extractor = tiny_encoder(**FRONT_END, chunk_frames=2, left_frames=4).feature_extractor
    assert isinstance(extractor, MelExtractor)
    wav = noise(2_000)[None]
    energies = extractor.energies(torch.nn.functional.pad(wav, (160, 160)))
    first, third = energies[:, :, :2], energies[:, :, 2:3]
    mean = (25 * -4 + first.mean()) / 26
    square = (25 * (2 + 16) + first.square().mean()) / 26
    columns = torch.cat([(first + 4) / 2**0.5, (third - mean) / (square - mean**2).sqrt()], dim=2)
    expected = torch.nn.functional.gelu(extractor.conv_layers[0](columns))[:, :, 0]
    torch.testing.assert_close(extractor(wav, None)[:, 0], expected, atol=1e-5, rtol=1e-4)


def test_statistics_of_a_long_wav_are_summed_in_blocks(extractor: MelExtractor, monkeypatch) -> None:
    waveform = noise(30_000)[None]
    whole = extractor.moments(waveform)
    monkeypatch.setattr("upstream.mel_extractor.BLOCK", 7)
    blocks = extractor.moments(waveform)
    assert whole is not None
    assert blocks is not None
    for one, other in zip(whole, blocks, strict=True):
        torch.testing.assert_close(one, other)


def test_a_folder_holds_it(encoder: SpeechEncoder, tmp_path: Path) -> None:
    save(encoder, tmp_path / "student")
    again = load(tmp_path / "student")
    assert again.config == encoder.config
    with torch.no_grad():
        assert torch.equal(again(noise(9000)).last_hidden_state, encoder(noise(9000)).last_hidden_state)


def test_transformers_opens_it(encoder: SpeechEncoder, tmp_path: Path) -> None:
    import transformers

    assert to_transformers(encoder, tmp_path / "folder", "") < 1e-4
    model = transformers.AutoModel.from_pretrained(tmp_path / "folder", trust_remote_code=True).eval()
    with torch.no_grad():
        states = model(noise(9000)[None], output_hidden_states=True).hidden_states
        torch.testing.assert_close(states[-1], encoder(noise(9000)).hidden_states[-1], atol=1e-4, rtol=1e-4)
    model.freeze_feature_encoder()
    assert not any(parameter.requires_grad for parameter in model.feature_extractor.parameters())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"conv_layers": ((24, 2, 2),)}, r"conv_layers is .*, but it must be \(\(24, 3, 2\),\) with mel_bins"),
        ({"conv_bias": False}, "conv_bias is False, but it must be True with mel_bins"),
        ({"mel_bins": 2000}, "mel_bins is 2000, but it must be between 0 and 1024"),
        ({"max_frames": 1500}, "max_frames is 1500, but it must be 0 except for Whisper"),
    ],
)
def test_what_does_not_fit_is_refused(tiny_config: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        tiny_config(**{**FRONT_END, **changes})
