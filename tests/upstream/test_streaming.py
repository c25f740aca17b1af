"""Streaming encoders: no state depends on the future, and the states are the same however a wav is cut."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from upstream.attention import chunk_mask
from upstream.chunked import extract, outputs
from upstream.dropout import Dropout
from upstream.encoder import EncoderOutput, SpeechEncoder
from upstream.errors import UserError

CONVOLUTIONS: dict[str, Any] = {"conv_layers": ((8, 10, 5), *((8, 3, 2),) * 4, (8, 2, 2), (16, 2, 2))}
HEARS: dict[str, Any] = {"chunk_frames": 5, "left_frames": 7}
MEL: dict[str, Any] = {"mel_bins": 40, "conv_bias": True, "conv_layers": ((40, 3, 2),)}
STRUCTURES: dict[str, dict[str, Any]] = {
    "hubert": CONVOLUTIONS,
    "log-mel": MEL,
    "layer norms": {**CONVOLUTIONS, "conv_norm": "layer"},
    "log-mel, by column": {**MEL, "conv_norm": "layer"},
    "wavlm": {**CONVOLUTIONS, "family": "wavlm"},
    "pre-LN": {**CONVOLUTIONS, "layer_norm_first": True},
    "pruned": {**CONVOLUTIONS, "attention_heads": ((1, 3), None, ()), "ffn_dims": (0, 9, None)},
    "wide fields": {"conv_layers": ((8, 10, 5), (8, 8, 4), (8, 4, 2), (8, 4, 2), (16, 4, 2))},  # 465 samples, hop 160
    "frame by frame": {**CONVOLUTIONS, "chunk_frames": 1, "left_frames": 0},
}
STATM = Path("/proc/self/statm")
EXACT = {"atol": 1e-5, "rtol": 1e-4}


@pytest.fixture(params=STRUCTURES)
def encoder(request: pytest.FixtureRequest, tiny_encoder: Callable[..., SpeechEncoder]) -> SpeechEncoder:
    return tiny_encoder(**{**HEARS, **STRUCTURES[request.param]})


def noise(*shape: int) -> Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def together(parts: list[EncoderOutput]) -> list[Tensor]:
    return [torch.cat(layer, dim=1) for layer in zip(*(part.hidden_states for part in parts), strict=True)]


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 160, 320, 777, 5000, 20_000])
def test_streaming_equals_the_whole_wav_in_pieces_of_any_size(encoder: SpeechEncoder, size: int) -> None:
    waveforms = noise(2, 9_876 if size > 1 else 2_000)
    whole = encoder(waveforms)
    with encoder.streaming(2) as stream:
        parts = [encoder(piece) for piece in waveforms.split(size, dim=1)]
        assert all(part.projected.shape[1] % encoder.config.chunk_frames == 0 for part in parts)
        parts.append(stream.flush())
    for streamed, states in zip(together(parts), whole.hidden_states, strict=True):
        torch.testing.assert_close(streamed, states, **EXACT)
    streamed = torch.cat([part.last_hidden_state for part in parts], dim=1)
    torch.testing.assert_close(streamed, whole.last_hidden_state, **EXACT)
    assert sum(part.frame_lengths for part in parts).tolist() == whole.frame_lengths.tolist()  # type: ignore[union-attr]
    torch.testing.assert_close(encoder(waveforms).last_hidden_state, whole.last_hidden_state)  # as before it


@torch.no_grad()
@pytest.mark.parametrize("size", [333, 5_000])
def test_so_do_products_of_matrices(encoder: SpeechEncoder, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The form that the convolutions have on a GPU."""
    waveforms = noise(2, 9_876)
    whole = encoder(waveforms).hidden_states
    for module in ("extractor", "mel_extractor", "encoder", "positional"):
        for name in ("convolves", "faster_by_row"):
            monkeypatch.setattr(f"upstream.{module}.{name}", lambda states: False, raising=False)
    with encoder.streaming(2) as stream:
        parts = [*(encoder(piece) for piece in waveforms.split(size, dim=1)), stream.flush()]
    for streamed, states in zip(together(parts), whole, strict=True):
        torch.testing.assert_close(streamed, states, **EXACT)


@torch.no_grad()
def test_quiet_audio_on_an_offset_is_streamed_as_well(tiny_encoder: Callable[..., SpeechEncoder]) -> None:
    encoder, waveform = tiny_encoder(**{**HEARS, **CONVOLUTIONS}), 0.01 * noise(1, 9_876) + 0.1
    with encoder.streaming() as stream:
        parts = [*(encoder(piece) for piece in waveform.split(333, dim=1)), stream.flush()]
    torch.testing.assert_close(together(parts)[-1], encoder(waveform).hidden_states[-1], atol=1e-4, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("step", [97, pytest.param(1, marks=pytest.mark.slow)])  # 1: every end index
def test_a_frame_does_not_change_with_what_follows_its_chunk(encoder: SpeechEncoder, step: int) -> None:
    config, waveform = encoder.config, noise(6_000)
    whole, chunk = encoder(waveform).hidden_states, config.chunk_frames
    ahead = 160 if config.mel_bins else 0  # samples that a log-mel frame sees beyond HuBERT's
    for end in range(config.min_samples, len(waveform), step):
        complete = config.frame_count(max(end - ahead, config.min_samples)) // chunk * chunk
        for cut, states in zip(encoder(waveform[:end]).hidden_states, whole, strict=True):
            torch.testing.assert_close(cut[:, :complete], states[:, :complete], **EXACT)
    full = encoder(torch.cat([waveform[:5_000], noise(1_000) + 0.5])).hidden_states[-1]
    assert not torch.allclose(full[:, -1], whole[-1][:, -1])


@torch.no_grad()
def test_left_context_is_what_was_asked_for(tiny_encoder: Callable[..., SpeechEncoder]) -> None:
    encoder = tiny_encoder(**{**HEARS, **CONVOLUTIONS, "attention_heads": ((0, 1),), "ffn_dims": (8,)})
    states = noise(1, 30, encoder.config.embed_dim)
    mask = chunk_mask(30, 5, 7)
    assert mask[12].nonzero()[:, 0].tolist() == list(range(3, 15))
    assert mask[4].nonzero()[:, 0].tolist() == list(range(5))
    layer = encoder.layers[0]
    before, _ = layer(states, mask[None, None], None, False)
    changed = states.clone()
    changed[:, 2] += 1.0
    after, _ = layer(changed, mask[None, None], None, False)
    moved = (after - before).abs().amax(dim=2)[0] > 0
    assert moved.nonzero()[:, 0].tolist() == list(range(10))  # frames of its own chunk and the next


@torch.no_grad()
def test_a_long_wav_in_chunks_is_exact_and_memory_constant(tiny_encoder: Callable[..., SpeechEncoder]) -> None:
    encoder, waveform = tiny_encoder(**{**HEARS, **CONVOLUTIONS}), noise(50_000)
    for chunked, states in zip(extract(encoder, waveform, 0.7), encoder(waveform).hidden_states, strict=True):
        torch.testing.assert_close(chunked, states[0], **EXACT)
    with encoder.streaming() as stream:
        sizes = []
        for _ in range(6):
            stream(noise(1, 16_000))
            kept = [stream.samples, stream.pending, stream.past]
            kept += [part for memory in stream.memories for part in memory.kept or ()]
            sizes.append(sum(part.numel() for part in kept))
        assert max(sizes[2:]) <= max(sizes[:2]) + 400 + 5 * encoder.config.embed_dim


@pytest.mark.slow
@pytest.mark.skipif(not STATM.exists(), reason="memory is read from /proc")
@torch.no_grad()
def test_an_hour_needs_no_more_memory_than_a_minute(tiny_encoder: Callable[..., SpeechEncoder]) -> None:
    encoder, second = tiny_encoder(**{**HEARS, **CONVOLUTIONS}), noise(1, 16_000)
    frames, pages = 0, {}  # resident now: a peak may be that of an earlier test
    with encoder.streaming() as stream:
        for past in range(1, 3_601):
            frames += encoder(second).projected.shape[1]
            if past in (60, 3_600):
                pages[past] = int(STATM.read_text().split()[1])
        frames += stream.flush().projected.shape[1]
    assert frames == encoder.config.frame_count(3_600 * 16_000)
    assert pages[3_600] - pages[60] < 2_500  # 10 MB; an hour of samples alone would be 230, its states as much


@torch.no_grad()
def test_a_batch_with_padding_is_that_of_each_wav(encoder: SpeechEncoder) -> None:
    batch, alone = encoder([noise(9_000), noise(5_000)]), encoder(noise(5_000))
    frames = alone.projected.shape[1]
    torch.testing.assert_close(batch.hidden_states[-1][1, :frames], alone.hidden_states[-1][0], **EXACT)


def test_padding_beyond_the_left_context_costs_no_numbers(encoder: SpeechEncoder) -> None:
    for module in encoder.modules():
        if isinstance(module, Dropout):
            module.p = 0.1
    short, alone = noise(3_000), encoder(noise(3_000)).last_hidden_state
    output = encoder([noise(30_000), short], attention_maps=True)
    frames = alone.shape[1]
    torch.testing.assert_close(output.last_hidden_state[1, :frames], alone[0], **EXACT)
    output = encoder.train()([noise(30_000), short], attention_maps=True)
    output.last_hidden_state[1, :frames].square().sum().backward()
    gradients = [parameter.grad for parameter in encoder.parameters() if parameter.grad is not None]
    assert gradients
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def test_chunks_come_one_by_one_and_leave_the_encoder_alone(tiny_encoder: Callable[..., SpeechEncoder]) -> None:
    encoder, waveform = tiny_encoder(**{**HEARS, **CONVOLUTIONS}), noise(20_000)
    with torch.no_grad():
        other = encoder(noise(5_000)).last_hidden_state
        heard = outputs(encoder, waveform, 0.5)
        first = next(heard)
        assert first.projected.shape[1] == 20  # of 62
        assert torch.equal(encoder(noise(5_000)).last_hidden_state, other)
        assert first.projected.shape[1] + sum(part.projected.shape[1] for part in heard) == 62
    with pytest.raises(UserError, match="the audio holds 2 wavs, but it must be one"):
        next(outputs(encoder, noise(2, 5_000)))
    with pytest.raises(UserError, match="the length of a chunk is 0"):
        next(outputs(encoder, waveform, 0))


@torch.no_grad()
def test_many_wavs_in_pieces_of_few_samples(tiny_encoder: Callable[..., SpeechEncoder]) -> None:
    encoder, waveforms = tiny_encoder(**{**HEARS, **CONVOLUTIONS}), noise(12, 1_603)
    with encoder.streaming(12) as stream:
        parts = [*(stream(piece) for piece in waveforms.split(400, dim=1)), stream.flush()]
    torch.testing.assert_close(together(parts)[-1], encoder(waveforms).hidden_states[-1], **EXACT)


def test_mistakes_are_one_sentence(tiny_encoder: Callable[..., SpeechEncoder]) -> None:
    with pytest.raises(UserError, match="this encoder needs the whole wav"), tiny_encoder().streaming():
        pass
    encoder = tiny_encoder(**{**HEARS, **CONVOLUTIONS})
    with encoder.streaming(2), pytest.raises(UserError, match="the audio must be 2 wavs of equal length"):
        encoder(noise(1, 400))
    with encoder.streaming() as stream:
        with pytest.raises(UserError, match="the encoder is already streaming"), encoder.streaming():
            pass
        with pytest.raises(UserError, match="a stream accepts neither lengths nor attention_maps"):
            encoder(noise(1, 400), attention_maps=True)
        stream.flush()
        with pytest.raises(UserError, match="the stream has ended"):
            stream(noise(1, 400))
    for changes, said in (
        ({"normalize_waveform": True}, "normalize_waveform is True, but it must be False with chunk_frames"),
        ({"chunk_frames": -1}, "chunk_frames is -1, but it must be between 0 and 65536"),
    ):
        with pytest.raises(UserError, match=said):
            tiny_encoder(**{**HEARS, **CONVOLUTIONS, **changes})
