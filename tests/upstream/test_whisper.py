"""Whisper's encoder against `transformers` itself, on tiny random checkpoints whose longest wav has one second."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from upstream import chunked
from upstream.checkpoint import load, save
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError
from upstream.expert import UpstreamExpert
from upstream.log_mel import log_mel

TOLERANCE = 1e-4
EXACT = 1e-5  # float32, in another order


@pytest.fixture
def folder(tmp_path) -> Callable[..., tuple[Any, Path]]:
    """A tiny random Whisper of `transformers` and the folder it was saved to."""
    import transformers

    def make(bins: int = 80, head: str = "Model", **changes: Any) -> tuple[Any, Path]:
        values = {
            "d_model": 48, "encoder_layers": 3, "encoder_attention_heads": 4, "encoder_ffn_dim": 64,
            "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "vocab_size": 60,
            "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3,
            "max_source_positions": 50, "attn_implementation": "eager",
        }  # fmt: skip
        torch.manual_seed(7)
        config = transformers.WhisperConfig(num_mel_bins=bins, **{**values, **changes})
        model = getattr(transformers, f"Whisper{head}")(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(tmp_path / "whisper")
        transformers.WhisperFeatureExtractor(feature_size=bins, chunk_length=1).save_pretrained(tmp_path / "whisper")
        return model, tmp_path / "whisper"

    return make


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def spectrogram(waveform: Tensor, bins: int = 80) -> Tensor:
    """(1, bin, column), of `transformers`."""
    import transformers

    prepare = transformers.WhisperFeatureExtractor(feature_size=bins, chunk_length=1)
    return prepare(waveform.numpy(), sampling_rate=16000, return_tensors="pt").input_features


@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize("samples", [16000, 11231, 401, 1])
def test_the_spectrogram_is_that_of_transformers(bins, samples, waveforms) -> None:
    waveform = 0.1 * waveforms[0, :samples]
    padded = torch.nn.functional.pad(waveform, (0, 16000 - samples))
    assert (log_mel(padded[None], bins) - spectrogram(waveform, bins)).abs().max() < EXACT


def test_the_spectrogram_of_silence_and_of_an_offset(waveforms) -> None:
    for waveform in (torch.zeros(16000), 0.5 + 1e-4 * waveforms[0]):
        assert (log_mel(waveform[None], 80) - spectrogram(waveform)).abs().max() < TOLERANCE


@pytest.mark.parametrize("bins", [80, 128])
def test_a_padded_batch_equals_transformers_on_each_wav_alone(bins, folder, waveforms, lengths) -> None:
    model, path = folder(bins)
    encoder = load(path)
    with torch.no_grad():
        batch = encoder(waveforms, lengths, attention_maps=True)
        for row, length in enumerate(lengths.tolist()):
            waveform = waveforms[row, :length]
            single = encoder(waveform)
            theirs = model.encoder(spectrogram(waveform, bins), output_hidden_states=True, output_attentions=True)
            frames = -(-length // 320)
            assert int(single.frame_lengths) == int(batch.frame_lengths[row]) == frames
            assert single.projected.shape[1] == frames
            references = [*theirs.hidden_states[:-1], theirs.last_hidden_state]
            for output, index in ((single, 0), (batch, row)):
                ours = [*output.hidden_states[:-1], output.last_hidden_state]
                for mine, reference in zip(ours, references, strict=True):
                    assert (mine[index, :frames] - reference[0, :frames]).abs().max() < TOLERANCE
            for mine, reference in zip(batch.attention_maps or [], theirs.attentions, strict=True):
                assert mine is not None
                assert (mine[row, :, :frames, :frames] - reference[0, :, :frames, :frames]).abs().max() < EXACT
    assert batch.projected.shape == batch.hidden_states[0].shape == (3, 50, 48)


def test_the_state_before_the_final_norm_is_the_last_layers_output(folder, waveforms) -> None:
    model, path = folder()
    outputs = []
    model.encoder.layers[-1].register_forward_hook(lambda *call: outputs.append(call[2]))
    with torch.no_grad():
        model.encoder(spectrogram(waveforms[0]))
        mine = load(path)(waveforms[0]).hidden_states[-1]
    theirs = outputs[0] if isinstance(outputs[0], Tensor) else outputs[0][0]
    assert (mine - theirs).abs().max() < TOLERANCE


@pytest.mark.parametrize("samples", [1, 200, 5000, 7040, 15999])
def test_front_end_and_convolutions_are_exact_without_padding(samples, folder, waveforms) -> None:
    _, path = folder()
    encoder = load(path)
    unpadded = SpeechEncoder(replace(encoder.config, attends_to_padding=False)).eval()
    unpadded.load_state_dict(encoder.state_dict())
    waveform = waveforms[0, :samples]
    with torch.no_grad():
        published, masked = encoder(waveform), unpadded(waveform)
        batch = unpadded(waveforms, torch.tensor([16000, 11231, samples]))
    assert torch.equal(published.frame_lengths, masked.frame_lengths)
    frames = int(masked.frame_lengths)
    for index in range(2):  # P and F^0
        pairs = [(output.projected, output.hidden_states[0])[index] for output in (published, masked)]
        assert (pairs[0] - pairs[1]).abs().max() < EXACT
    if samples < 10000:
        assert (published.hidden_states[1] - masked.hidden_states[1]).abs().max() > 1e-3  # attention is not
    reference = unpadded(waveforms[1, :11231])
    for mine, single in zip(batch.hidden_states, reference.hidden_states, strict=True):
        assert (mine[1, : single.shape[1]] - single[0]).abs().max() < EXACT  # whatever else is in its batch
    assert batch.hidden_states[1].shape[1] == 50 >= frames


def test_config_json_can_mask_the_padding(folder) -> None:
    _, path = folder()
    assert load(path).config.attends_to_padding
    edit(path / "config.json", attends_to_padding=False)
    assert not load(path).config.attends_to_padding


@pytest.mark.parametrize("head", ["ForConditionalGeneration", "ForAudioClassification"])
def test_the_encoder_is_found_in_a_larger_model(head, folder, waveforms) -> None:
    model, path = folder(head=head)
    inner = model.encoder if head == "ForAudioClassification" else model.model.encoder
    with torch.no_grad():
        reference = inner(spectrogram(waveforms[0])).last_hidden_state
        assert (load(path)(waveforms[0]).last_hidden_state - reference).abs().max() < TOLERANCE


def test_a_longer_wav_is_one_line_and_padding_of_a_batch_is_none(folder) -> None:
    _, path = folder()
    encoder = load(path)
    with pytest.raises(UserError, match=r"a wav has 1\.06 s, but this encoder takes at most 1 s") as raised:
        encoder(torch.randn(17000))
    assert "\n" not in str(raised.value)
    wav = torch.randn(16000)
    with torch.no_grad():
        wider = encoder(torch.nn.functional.pad(wav, (0, 1000))[None], [16000])
        assert torch.equal(wider.last_hidden_state, encoder(wav).last_hidden_state)


def test_a_saved_encoder_opens_again(folder, tmp_path, waveforms) -> None:
    encoder = load(folder()[1])
    save(encoder, tmp_path / "ours")
    again = load(tmp_path / "ours")
    assert again.config == encoder.config
    with torch.no_grad():
        assert torch.equal(again(waveforms).last_hidden_state, encoder(waveforms).last_hidden_state)


def test_s3prls_upstream_takes_it_and_long_wavs_in_chunks_are_refused(folder, waveforms) -> None:
    _, path = folder()
    upstream = UpstreamExpert(str(path))
    with torch.no_grad():
        states = upstream([waveforms[0].numpy(), np.zeros(100, np.float32)])["hidden_states"]
    assert [state.shape for state in states] == [(2, 50, 48)] * 4
    with pytest.raises(UserError, match="cannot be computed in chunks"):
        chunked.extract(load(path), waveforms[0])


@pytest.mark.parametrize(
    ("file", "key", "value", "sentence"),
    [
        ("config.json", "activation_function", "relu", "activation_function is 'relu', but it must be 'gelu'"),
        ("config.json", "encoder_attention_heads", 5, r"must be a divisor of d_model \(48\)"),
        ("config.json", "d_model", "48", "d_model is '48'"),
        ("config.json", "num_mel_bins", 0, "mel_bins is 0, but it must be between 1 and 1024"),
        ("config.json", "max_source_positions", 10**9, "max_frames is 1000000000, but it must be between"),
        ("config.json", "d_model", 96, "has shape .* but the configuration asks for"),
        ("config.json", "encoder_layers", 2, r"unexpected keys encoder\.layers\.2\."),
        ("config.json", "attends_to_padding", "no", "attends_to_padding is 'no', but it must be of type bool"),
        ("preprocessor_config.json", "feature_size", 128, "feature_size is 128, but it must be 80"),
        ("preprocessor_config.json", "hop_length", 320, "hop_length is 320, but it must be 160"),
        ("preprocessor_config.json", "chunk_length", 30, "chunk_length is 30, but it must be 1"),
        ("preprocessor_config.json", "dither", 0.1, "dither is 0.1, but it must be 0.0"),
    ],
)
def test_what_is_not_supported_is_said_in_one_line(file, key, value, sentence, folder) -> None:
    _, path = folder()
    edit(path / file, **{key: value})
    with pytest.raises(UserError, match=sentence) as raised:
        load(path)
    assert "\n" not in str(raised.value)
