"""Long wavs in chunks: exact and approximate states, and impossible settings."""

import pytest
import torch

from upstream.chunked import chunks, extract
from upstream.errors import UserError

STRUCTURES = [
    {},
    {"family": "wavlm"},
    {"conv_norm": "layer", "conv_bias": True, "layer_norm_first": True, "normalize_waveform": True},
    {"feature_scale": True, "frame_multiple": 2},
]


@pytest.mark.parametrize("changes", STRUCTURES, ids=["base", "wavlm", "large", "scaled"])
def test_with_all_of_the_wav_as_overlap_it_is_the_whole(changes, tiny_encoder) -> None:
    encoder, waveform = tiny_encoder(**changes), torch.randn(20_321)
    with torch.no_grad():
        whole = encoder(waveform[None]).hidden_states
    for expected, found in zip(whole, extract(encoder, waveform, seconds=0.3, overlap=2.0), strict=True):
        torch.testing.assert_close(found, expected[0], atol=2e-5, rtol=0)


def test_more_overlap_comes_nearer_to_the_whole(tiny_encoder) -> None:
    encoder, waveform = tiny_encoder(), torch.randn(64_000)
    with torch.no_grad():
        whole = encoder(waveform[None]).hidden_states
    errors = []
    for overlap in (0.0, 0.2, 1.0):
        found = extract(encoder, waveform, seconds=0.5, overlap=overlap)
        # the positional convolution of 16 taps sees 8 frames, 0.16 s, to either side
        assert (float((found[0] - whole[0][0]).abs().max()) < 2e-5) == (overlap > 0.16)
        errors.append(float((found[-1] - whole[-1][0]).norm() / whole[-1].norm()))
    assert 0 < errors[2] < errors[1] < errors[0] < 0.5


def test_chunks_are_as_long_as_asked(tiny_encoder) -> None:
    encoder = tiny_encoder()
    frames = [len(states[0]) for states in chunks(encoder, torch.randn(32_000), seconds=0.5, overlap=0.1)]
    assert frames == [25, 25, 25, 24]


@pytest.mark.parametrize(
    ("samples", "seconds", "overlap", "said"),
    [
        (100, 1.0, 0.0, "a wav has 100 samples, but it must have at least 400, one frame"),
        ((2, 16_000), 1.0, 0.0, "the audio holds 2 wavs, but it must be one, which is cut into chunks"),
        (16_000, 0.01, 0.0, "the length of a chunk is 0.01, but it must be at least 0.02 seconds"),
        (16_000, 1.0, -1.0, "the overlap of chunks is -1.0, but it must be at least 0 seconds"),
    ],
)
def test_what_cannot_be_is_a_one_line_error(samples, seconds, overlap, said, tiny_encoder) -> None:
    with pytest.raises(UserError, match=said):
        extract(tiny_encoder(), torch.randn(samples), seconds, overlap)
