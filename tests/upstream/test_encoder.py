"""The encoder: frames, independence of padding, structures that pruning leaves."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from upstream.attention import HEAD_MULTIPLE
from upstream.cost import count_macs
from upstream.errors import UserError

STRUCTURES = {
    "plain": {},
    "large": {"conv_norm": "layer", "conv_bias": True, "layer_norm_first": True, "normalize_waveform": True},
    "wavlm": {"family": "wavlm"},
    "pruned": {"attention_heads": ((0, 2), None, ()), "ffn_dims": (None, 17, 0), "feature_scale": True},
    "pruned wavlm": {"family": "wavlm", "attention_heads": ((1,), (0, 2, 3), None), "ffn_dims": (0, None, 9)},
    "pruned large": {
        "conv_norm": "layer",
        "layer_norm_first": True,
        "attention_heads": ((), (3,), None),
        "ffn_dims": (5, None, 0),
    },
    "no norm": {"feature_norm": False},
    "odd kernel": {"positional_kernel": 15},
    "log-mel": {"mel_bins": 40, "conv_bias": True, "conv_layers": ((40, 3, 2),)},
    "narrow": {"conv_layers": (*((24, 10, 5),), *((24, 3, 2),) * 4, *((48, 2, 2),) * 2), "projection": False},
}


def test_macs_are_those_of_the_multiplications_done(tiny_encoder, monkeypatch) -> None:
    """Counted again by torch's own counter: two floating-point operations for a multiply-accumulate."""
    from torch.utils.flop_counter import FlopCounterMode

    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)  # convolutions as such
    for name in ("plain", "wavlm", "pruned", "pruned large", "log-mel"):
        encoder = tiny_encoder(**STRUCTURES[name])
        with FlopCounterMode(display=False) as counter:
            encoder(torch.randn(1, 8000), attention_maps=True)  # the maps' matrix products are visible to the counter
        assert counter.get_total_flops() == 2 * count_macs(encoder.config, 8000), name


def test_an_odd_extractor_counts_its_frames(tiny_encoder) -> None:
    encoder = tiny_encoder(conv_layers=((8, 7, 3), (8, 4, 3), (16, 5, 2)))
    min_samples = encoder.config.min_samples
    for samples in (min_samples, min_samples + 1, 500, 1001):
        output = encoder(torch.randn(1, samples))
        assert output.projected.shape[1] == encoder.config.frame_count(samples) == int(output.frame_lengths)
    with pytest.raises(
        UserError, match=f"has {min_samples - 1} samples, but it must have at least {min_samples}, one frame"
    ):
        encoder(torch.randn(1, min_samples - 1))


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_wav_does_not_depend_on_its_batch(name, tiny_encoder, waveforms, lengths) -> None:
    encoder = tiny_encoder(**STRUCTURES[name])
    with torch.no_grad():
        batch = encoder(waveforms, lengths, attention_maps=True)
        dirty = waveforms.clone()
        dirty[1, lengths[1] :], dirty[2, lengths[2] :] = math.nan, 1e30
        states = encoder(dirty, lengths, attention_maps=True)
        for index, length in enumerate(lengths.tolist()):
            alone = encoder(waveforms[index : index + 1, :length], attention_maps=True)
            frames = int(alone.frame_lengths)
            pairs = [(batch.projected, alone.projected), (batch.last_hidden_state, alone.last_hidden_state)]
            pairs += zip(batch.hidden_states, alone.hidden_states, strict=True)
            for in_batch, reference in pairs:
                assert (in_batch[index, :frames] - reference[0]).abs().max() < 1e-4
            for in_batch, reference in zip(batch.attention_maps, alone.attention_maps, strict=True):
                if reference is None:
                    assert in_batch is None
                    continue
                assert (in_batch[index, :, :frames, :frames] - reference[0]).abs().max() < 1e-5
                assert in_batch[index, :, :, frames:].abs().sum() == 0  # padded keys get no attention
        for clean, other in zip(batch.hidden_states, states.hidden_states, strict=True):
            assert torch.equal(clean, other)
            assert bool(clean.isfinite().all())  # padded frames too: masked losses multiply them by zero


@pytest.mark.parametrize("name", ["plain", "large", "wavlm"])
def test_nan_in_the_padding_reaches_no_gradient(name, tiny_encoder, waveforms, lengths) -> None:
    gradients = []
    for filling in (0.0, math.nan):
        encoder = tiny_encoder(**STRUCTURES[name])
        filled = torch.where(torch.arange(16000) < lengths[:, None], waveforms, filling)
        output = encoder(filled, lengths)
        mask = torch.arange(output.projected.shape[1]) < output.frame_lengths[:, None]
        torch.stack(output.hidden_states)[:, mask].square().sum().backward()
        gradients.append([parameter.grad for parameter in encoder.parameters()])
    for clean, dirty in zip(*gradients, strict=True):
        if clean is None:  # a pre-LN model's final norm is in last_hidden_state only
            assert dirty is None
        else:
            assert torch.equal(clean, dirty)


@pytest.mark.parametrize("name", ["plain", "large", "wavlm", "pruned wavlm"])
def test_rows_of_a_batch_alone_and_together(name, tiny_encoder, waveforms, lengths) -> None:
    """Without gradients a CPU takes them one by one, otherwise all at once."""
    encoder = tiny_encoder(**STRUCTURES[name])
    together = encoder(waveforms, lengths, attention_maps=True)
    with torch.no_grad():
        alone = encoder(waveforms, lengths, attention_maps=True)
    for row, frames in enumerate(together.frame_lengths):
        for left, right in zip(alone.hidden_states, together.hidden_states, strict=True):
            assert left.shape == right.shape
            assert (left[row, :frames] - right[row, :frames]).abs().max() < 1e-5
            assert bool((left[row, frames:] == 0).all())
        assert (alone.last_hidden_state[row, :frames] - together.last_hidden_state[row, :frames]).abs().max() < 1e-5
        for left, right in zip(alone.attention_maps, together.attention_maps, strict=True):
            assert (left is None) == (right is None)
            if left is not None:
                assert left.shape == right.shape
                assert (left[row, :, :frames] - right[row, :, :frames]).abs().max() < 1e-6


@pytest.mark.parametrize("name", STRUCTURES)
def test_maps_cost_no_difference(name, tiny_encoder, waveforms, lengths) -> None:
    encoder = tiny_encoder(**STRUCTURES[name])
    with torch.no_grad():
        without, with_maps = encoder(waveforms, lengths), encoder(waveforms, lengths, attention_maps=True)
    assert without.attention_maps is None
    assert (without.last_hidden_state - with_maps.last_hidden_state).abs().max() < 1e-5
    for heads, attention_map in zip(encoder.config.attention_heads, with_maps.attention_maps, strict=True):
        if not heads:
            assert attention_map is None
        else:
            assert attention_map.shape == (3, len(heads), 49, 49)
            for row, frames in zip(attention_map, with_maps.frame_lengths, strict=True):
                assert torch.allclose(row[:, :frames].sum(dim=-1), torch.ones(len(heads), frames))
                assert bool((row[:, :frames, frames:] == 0).all())


def test_removing_zeroed_units_changes_nothing(tiny_encoder, waveforms, lengths) -> None:
    """Heads whose output columns are zero, FFN units likewise: an encoder without them computes the same."""
    full = tiny_encoder(family="wavlm")
    heads, units, dim = (1, 3), torch.tensor([0, 5, 63]), full.config.head_dim
    channels = torch.cat([torch.arange(head * dim, (head + 1) * dim) for head in heads])
    cut = tiny_encoder(family="wavlm", attention_heads=(heads,) * 3, ffn_dims=(3,) * 3)
    state = full.state_dict()
    for layer in range(3):
        attention, ffn = f"layers.{layer}.attention.", f"layers.{layer}.feed_forward."
        keep_in, keep_unit = torch.zeros(48), torch.zeros(64)
        keep_in[channels], keep_unit[units] = 1, 1
        state[f"{attention}out_proj.weight"] = state[f"{attention}out_proj.weight"] * keep_in
        state[f"{ffn}output.weight"] = state[f"{ffn}output.weight"] * keep_unit
    full.load_state_dict(state)
    less = dict(state)
    for layer in range(3):
        attention, ffn = f"layers.{layer}.attention.", f"layers.{layer}.feed_forward."
        for name in ("q_proj", "k_proj", "v_proj"):
            for part in ("weight", "bias"):
                less[f"{attention}{name}.{part}"] = state[f"{attention}{name}.{part}"][channels]
        less[f"{attention}out_proj.weight"] = state[f"{attention}out_proj.weight"][:, channels]
        less[f"{attention}gate.constant"] = state[f"{attention}gate.constant"][list(heads)]
        for part in ("weight", "bias"):
            less[f"{ffn}intermediate.{part}"] = state[f"{ffn}intermediate.{part}"][units]
        less[f"{ffn}output.weight"] = state[f"{ffn}output.weight"][:, units]
    cut.load_state_dict(less)
    with torch.no_grad():
        a, b = full(waveforms, lengths), cut(waveforms, lengths)
    assert (a.last_hidden_state - b.last_hidden_state).abs().max() < 1e-5


def test_an_emptied_sublayer_keeps_its_bias_and_a_missing_one_nothing(tiny_encoder, waveforms) -> None:
    encoder = tiny_encoder(attention_heads=((), None, ()), ffn_dims=(None, 0, 0))
    with torch.no_grad():
        states = encoder(waveforms[:1]).hidden_states
        layer = encoder.layers[0]
        expected = layer.attention_norm(states[0] + layer.attention.bias)
        assert torch.allclose(states[1], layer.feed_forward_norm(expected), atol=1e-6)
        layer = encoder.layers[1]
        expected = layer.attention_norm(states[1]) + layer.feed_forward.bias
        assert torch.allclose(states[2], layer.feed_forward_norm(expected), atol=1e-6)


def test_the_feature_scale_multiplies_the_last_convolution(tiny_encoder, waveforms) -> None:
    encoder = tiny_encoder(feature_scale=True, feature_norm=False)
    assert encoder.feature_extractor.scale is not None
    with torch.no_grad():
        before = encoder(waveforms[:1]).projected
        encoder.feature_extractor.scale[3] = 0
        kept = encoder.feature_projection.projection.weight[:, 3].clone()
        encoder.feature_projection.projection.weight[:, 3] = 0
        silent = encoder(waveforms[:1]).projected
        encoder.feature_projection.projection.weight[:, 3] = kept
        assert torch.allclose(silent, encoder(waveforms[:1]).projected, atol=1e-6)
        assert not torch.allclose(silent, before, atol=1e-3)


def test_normalisation_removes_gain_and_offset(tiny_encoder, waveforms, lengths) -> None:
    with torch.no_grad():
        for normalize, bound in ((True, 1e-3), (False, None)):
            encoder = tiny_encoder(conv_norm="layer", conv_bias=True, normalize_waveform=normalize)
            plain = encoder(waveforms, lengths).last_hidden_state[2, :21]
            louder = encoder(waveforms * 20 + 3, lengths).last_hidden_state[2, :21]
            difference = (plain - louder).abs().max()
            assert difference < bound if bound else difference > 0.1


def test_group_norm_statistics_are_those_of_the_valid_frames(tiny_encoder) -> None:
    encoder = tiny_encoder()
    norm = encoder.feature_extractor.conv_layers[0].layer_norm
    values = torch.randn(2, 16, 30)
    with torch.no_grad():
        masked = norm(values, torch.tensor([30, 11]))
        alone = F.group_norm(values[1:, :, :11], 16, norm.weight, norm.bias)
    assert torch.allclose(masked[1, :, :11], alone[0], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("head_multiple", [1, 8])
@pytest.mark.parametrize("name", STRUCTURES)
def test_the_forms_for_training_equal_the_convolutions_of_exports(
    tiny_encoder, waveforms, lengths, name, head_multiple, dtype, monkeypatch
) -> None:
    """Matrix products, spectra, the folded norm and a GPU's head widths: the same states and gradients."""
    monkeypatch.setitem(HEAD_MULTIPLE, "cpu", head_multiple)  # of heads that have 12 channels
    encoder = tiny_encoder(**STRUCTURES[name]).to(dtype)

    def states_and_gradients() -> tuple[Tensor, list[Tensor]]:
        output = encoder(waveforms.to(dtype), lengths)
        states = torch.cat([output.projected, *output.hidden_states], dim=2)[output.frame_mask()]
        weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        parameters = [value for key, value in encoder.named_parameters() if not key.endswith("k_proj.bias")]
        gradients = torch.autograd.grad((states * weights).sum(), parameters, allow_unused=True)
        return states.detach(), [gradient for gradient in gradients if gradient is not None]

    states, gradients = states_and_gradients()
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    expected_states, expected_gradients = states_and_gradients()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(states, expected_states, atol=tolerance, rtol=tolerance)
    assert len(gradients) == len(expected_gradients) > 20
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        assert float((gradient - expected).norm()) <= tolerance * float(expected.norm())


@pytest.mark.parametrize("structure", STRUCTURES)
def test_inference_in_blocks_gives_what_training_computes(structure, tiny_encoder, monkeypatch) -> None:
    """Blocks of 0.1 s over padded wavs with an offset; with gradients the extractor takes the batch as a whole."""
    monkeypatch.setattr("upstream.extractor.BLOCK_SECONDS", 0.1)
    monkeypatch.setattr("upstream.extractor.SAMPLE_BLOCK", 1000)
    encoder = tiny_encoder(**STRUCTURES[structure])
    waveforms, lengths = 0.1 * torch.randn(3, 17_000) + 0.5, torch.tensor([16_900, 405, 9_000])
    whole = encoder(waveforms, lengths)
    with torch.no_grad():
        blocks = encoder(waveforms, lengths)
    for expected, found in zip(whole.hidden_states, blocks.hidden_states, strict=True):
        assert found.shape == expected.shape
        for row, frames in enumerate(whole.frame_lengths):
            torch.testing.assert_close(found[row, :frames], expected[row, :frames].detach(), atol=2e-5, rtol=0)


def test_training_uses_dropout_and_evaluation_does_not(tiny_encoder, waveforms) -> None:
    encoder = tiny_encoder(hidden_dropout=0.2, attention_dropout=0.2, activation_dropout=0.2, feature_dropout=0.2)
    with torch.no_grad():
        assert torch.equal(encoder(waveforms).last_hidden_state, encoder(waveforms).last_hidden_state)
        encoder.train()
        assert not torch.equal(encoder(waveforms).last_hidden_state, encoder(waveforms).last_hidden_state)


def test_relative_positions_are_bucketed_by_sign_and_size(tiny_encoder) -> None:
    """32 buckets: 16 a sign, 8 of them exact, 8 logarithmic up to 80 frames."""
    table = tiny_encoder(family="wavlm").relative_position
    buckets = table._bucket(torch.tensor([0, -1, -7, -8, -79, -500, 1, 7, 8, 79, 500]))
    assert buckets.tolist() == [0, 1, 7, 8, 15, 15, 17, 23, 24, 31, 31]


@pytest.mark.parametrize("name", ["wavlm", "pruned wavlm"])
def test_long_wavs_have_their_position_biases_in_blocks(name, tiny_encoder, waveforms, lengths, monkeypatch) -> None:
    """A block of 7 queries for 49 frames, and larger ones for the shorter wavs of the batch."""
    encoder = tiny_encoder(**STRUCTURES[name])
    with torch.no_grad():
        whole = encoder(waveforms, lengths)
        monkeypatch.setattr("upstream.attention.BIAS_PAIRS", 350)
        blocks, with_maps = encoder(waveforms, lengths), encoder(waveforms, lengths, attention_maps=True)
    for expected, *found in zip(whole.hidden_states, blocks.hidden_states, with_maps.hidden_states, strict=True):
        for states in found:
            torch.testing.assert_close(states, expected, atol=1e-5, rtol=0)
