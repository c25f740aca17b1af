"""What people have as audio: the same states from every kind, or one line, at every entry."""

import math

import numpy as np
import pytest
import torch

from tests.upstream.test_encoder import STRUCTURES
from upstream.checkpoint import save
from upstream.chunked import extract
from upstream.errors import UserError
from upstream.expert import UpstreamExpert
from upstream.waveforms import normalize_waveforms

SAMPLES = 4000


@pytest.fixture
def wav() -> torch.Tensor:
    """(sample,) that 16-bit integers hold exactly, whose mean is 0."""
    generator = torch.Generator().manual_seed(2)
    half = torch.randint(-9000, 9000, (SAMPLES // 2,), generator=generator)
    return torch.cat([half, -half]) / 2**15


@pytest.fixture
def entries(tmp_path, tiny_encoder):
    """Every entry as a function from audio to the last hidden state of its first wav, (frame, channel)."""
    encoder = tiny_encoder()
    save(encoder, tmp_path / "student")
    expert = UpstreamExpert(tmp_path / "student").eval()
    return {
        "encoder": lambda audio: encoder(audio).last_hidden_state[0],
        "s3prl": lambda audio: expert(audio)["last_hidden_state"][0],
        "chunks": lambda audio: extract(encoder, audio)[-1],
    }


KINDS = {
    "float64": lambda wav: wav.double()[None],
    "float16": lambda wav: (wav * 2**-4).half()[None] * 2**4,
    "int16": lambda wav: (wav * 2**15).short()[None],
    "int32": lambda wav: (wav * 2**31).int()[None],
    "numpy": lambda wav: wav.double().numpy()[None],
    "numpy int16": lambda wav: (wav.numpy() * 2**15).astype(np.int16),
    "big-endian": lambda wav: (wav.numpy() * 2**15).astype(">i2")[None],
    "read-only": lambda wav: np.frombuffer(wav.numpy().tobytes(), np.float32)[None],
    "reversed": lambda wav: wav.numpy()[::-1].copy()[::-1],
    "numbers": lambda wav: wav.tolist(),
    "nested numbers": lambda wav: [wav.tolist()],
    "one dimension": lambda wav: wav,
    "channel": lambda wav: wav[None, None],
    "last channel": lambda wav: wav[:, None],
    "list of tensors": lambda wav: [wav],
    "list of a channel": lambda wav: [wav[None]],
    "tuple of an array with a last channel": lambda wav: (wav.double().numpy()[:, None],),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_audio_gives_the_states_of_the_float_tensor(kind, entries, wav) -> None:
    with torch.no_grad():
        for name, entry in entries.items():
            tolerance = 1e-2 if kind == "float16" else 1e-5
            torch.testing.assert_close(entry(KINDS[kind](wav)), entry(wav[None]), atol=tolerance, rtol=0, msg=name)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_eight_bits_are_scaled_as_audio_files_hold_them(dtype, entries, wav) -> None:
    steps = (wav * 2**7).round()
    with torch.no_grad():
        found = entries["encoder"]((steps + (128 if dtype == torch.uint8 else 0)).to(dtype))
        torch.testing.assert_close(found, entries["encoder"](steps / 2**7), atol=1e-5, rtol=0)


FAULTS = {
    "NaN": (lambda wav: torch.where(wav > 0.2, math.nan, wav)[None], "wav 0 holds NaN or infinite samples"),
    "infinite": (lambda wav: [wav, wav.clone().index_fill(0, torch.tensor(9), math.inf)], "wav 1 holds NaN"),
    "overflow": (lambda wav: wav.double()[None] * 1e300, "wav 0 holds NaN or infinite"),
    "int64": (lambda wav: (wav * 2**15).long()[None], "holds int64 numbers, but they must be floating-point, int16"),
    "complex": (lambda wav: wav.to(torch.complex64), "holds complex64 numbers"),
    "bool": (lambda wav: wav > 0, "holds bool numbers"),
    "stereo in a list": (lambda wav: [wav, wav.expand(2, -1)], r"wav 1 has shape \(2, 4000\), but it must be mono"),
    "stereo in a batch": (lambda wav: wav.expand(3, 2, -1), r"the audio has shape \(3, 2, 4000\), but it must be mono"),
    "stereo from soundfile": (
        lambda wav: wav[:, None].expand(-1, 2),
        r"the audio has shape \(4000, 2\), but it must be",
    ),
    "no samples": (lambda wav: [wav, wav[:0]], "a wav has 0 samples, but it must have at least"),
    "an empty batch": (lambda wav: wav.expand(0, -1), r"the audio has shape \(0, 4000\)"),
    "an empty list": (lambda wav: [], "a wav has 0 samples"),
    "a path": (lambda wav: "speech.wav", "the audio is 'speech.wav', but it must be a tensor, an array or a list"),
    "paths": (lambda wav: ["a.wav", "b.wav"], "wav 0 is 'a.wav', but it must be a tensor"),
    "nothing": (lambda wav: None, "the audio is None, but it must be a tensor"),
    "ragged": (lambda wav: np.array([[1.0], [2.0, 3.0]], dtype=object), "but it must be a tensor, an array"),
    "a number": (lambda wav: 0.5, r"the audio has shape \(\), but it must be mono"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_what_is_no_audio_is_one_line(kind, entries, wav) -> None:
    make, said = FAULTS[kind]
    for entry in entries.values():
        with pytest.raises(UserError, match=said) as raised:
            entry(make(wav))
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) < 300


def test_a_list_of_unequal_wavs_is_a_padded_batch(tiny_encoder, wav) -> None:
    encoder = tiny_encoder()
    with torch.no_grad():
        output = encoder([wav.numpy(), wav[:1999].double()])
        padded = encoder(torch.stack([wav, torch.nn.functional.pad(wav[:1999], (0, 2001))]), torch.tensor([4000, 1999]))
    assert output.frame_lengths.tolist() == padded.frame_lengths.tolist()
    assert torch.equal(output.last_hidden_state, padded.last_hidden_state)


@pytest.mark.parametrize(
    "lengths",
    [[4000, 3000], (4000.0, 3000.0), np.array([4000, 3000], np.int32), torch.tensor([4000.0, 3000.0])],
)
def test_lengths_of_any_kind(lengths, tiny_encoder, wav) -> None:
    encoder, batch = tiny_encoder(), torch.stack([wav, wav])
    with torch.no_grad():
        expected = encoder(batch, torch.tensor([4000, 3000]))
        assert torch.equal(encoder(batch, lengths).last_hidden_state, expected.last_hidden_state)


@pytest.mark.parametrize(
    ("lengths", "said"),
    [
        (torch.tensor([4000, 399]), "a wav has 399 samples, but it must have at least 400, one frame"),
        (torch.tensor([4001, 400]), "a length is 4001 samples, but its wav has 4000"),
        (torch.tensor([4000]), r"the lengths have shape \(1,\), but must be \(batch,\), here \(2,\)"),
        (torch.ones(2, 4000), r"the lengths have shape \(2, 4000\), but must be \(batch,\)"),
        (4000, r"the lengths have shape \(\)"),
        ([1.0, 0.75], r"the lengths are \[1.0, 0.75\], but they must be whole numbers of samples"),
        (torch.tensor([4000, math.nan]), "but they must be whole numbers"),
        (torch.tensor([True, True]), "but they must be whole numbers"),
        ([-4000, 4000], "a wav has -4000 samples"),
        (["4000", "x"], "the list of lengths is .*, but it must be a tensor"),
    ],
)
def test_lengths_that_do_not_fit_are_one_line(lengths, said, tiny_encoder, wav) -> None:
    with pytest.raises(UserError, match=said):
        tiny_encoder()(torch.stack([wav, wav]), lengths)


def test_nan_in_the_padding_is_no_fault(tiny_encoder, wav) -> None:
    encoder, dirty = tiny_encoder(), torch.stack([wav, wav])
    dirty[1, 3000:] = math.nan
    with torch.no_grad():
        assert bool(encoder(dirty, torch.tensor([4000, 3000])).last_hidden_state.isfinite().all())


def test_an_encoder_of_another_type_gets_its_type(tiny_encoder, wav) -> None:
    with torch.no_grad():
        for dtype in (torch.float64, torch.bfloat16):
            assert tiny_encoder().to(dtype)(wav.numpy()).last_hidden_state.dtype == dtype


def test_gradients_reach_the_waveform(tiny_encoder, wav) -> None:
    wav.requires_grad_()
    tiny_encoder()([wav]).last_hidden_state.square().sum().backward()
    assert wav.grad is not None
    assert bool(wav.grad.any())


@pytest.mark.parametrize("structure", [*STRUCTURES, "group bias", "group normalised", "layer unnormalised"])
@pytest.mark.parametrize(("amplitude", "offset"), [(1e-3, 0.5), (1e-4, -0.9), (0.1, 20.0)])
def test_quiet_audio_on_an_offset_does_not_depend_on_its_batch(
    structure, amplitude, offset, tiny_encoder, waveforms, lengths
) -> None:
    """In training, where the batch is one tensor, and in inference, row by row."""
    more = {
        "group bias": {"conv_bias": True},
        "group normalised": {"normalize_waveform": True},
        "layer unnormalised": {"conv_norm": "layer", "conv_bias": True},
    }
    encoder, batch = tiny_encoder(**{**STRUCTURES, **more}[structure]), waveforms * amplitude + offset
    for training in (True, False):
        with torch.set_grad_enabled(training):
            together = encoder(batch, lengths)
            for index, length in enumerate(lengths.tolist()):
                alone = encoder(batch[index, :length])
                for found, expected in zip(together.hidden_states, alone.hidden_states, strict=True):
                    frames = expected.shape[1]
                    torch.testing.assert_close(found[index, :frames], expected[0], atol=1e-4, rtol=0)


def test_an_offset_changes_nothing_behind_a_group_norm(tiny_encoder, wav) -> None:
    encoder = tiny_encoder()
    with torch.no_grad():
        torch.testing.assert_close(
            encoder(wav + 0.25).last_hidden_state, encoder(wav).last_hidden_state, atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_ten_seconds_are_normalised_in_any_precision(dtype):
    waveforms = torch.zeros(2, 160_000, dtype=torch.float64)
    waveforms[0] = 0.1 * torch.sin(torch.arange(160_000) / 7) + 0.3
    waveforms[1, :1000] = waveforms[0, :1000]
    normal = normalize_waveforms(waveforms.to(dtype), torch.tensor([160_000, 1000]))
    assert normal.dtype == dtype
    for row, length in zip(normal.double(), (160_000, 1000), strict=True):
        expected = waveforms[0, :length]
        expected = (expected - expected.mean()) / torch.sqrt(expected.var(correction=0) + 1e-7)
        torch.testing.assert_close(row[:length], expected, atol=0.1 if dtype.itemsize == 2 else 1e-4, rtol=0)
        assert not row[length:].any()
