"""Dropout from cheap random bits: its rate, its scale, its gradients, and that a seed repeats it."""

import math

import pytest
import torch
from torch import Tensor

from distiller.training.dropout import Dropout, draw_dropped, dropout, dropped_attention, install, used_rate
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder

SHAPE = torch.Size((3, 7, 7))  # of one utterance's attention map


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_the_rate_is_that_asked_for(p) -> None:
    count = 2_000_000
    torch.manual_seed(1)
    share = draw_dropped(torch.Size((count,)), p).double().mean().item()
    assert abs(used_rate(p) - p) < 8e-6
    assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / count)


def test_elements_that_share_a_draw_are_independent() -> None:
    torch.manual_seed(2)
    lanes = draw_dropped(torch.Size((500_000, 4)), 0.1).double()
    correlation = torch.corrcoef(torch.cat([lanes, lanes.roll(1, 0)], dim=1).T) - torch.eye(8, dtype=torch.float64)
    assert correlation.abs().max() < 5 / math.sqrt(500_000)


def test_what_is_kept_is_scaled_by_the_rate_that_is_used() -> None:
    torch.manual_seed(3)
    values = torch.randn(5, 9, requires_grad=True)  # no multiple of four
    dropped = dropout(values, 0.1, training=True)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], values[kept] / (1 - used_rate(0.1)))
    (gradient,) = torch.autograd.grad(dropped.sum(), values)
    torch.testing.assert_close(gradient, kept / (1 - used_rate(0.1)))
    assert 0 < (~kept).sum() < kept.sum()


@pytest.mark.parametrize("p", [0.0, 1e-9])
def test_nothing_is_dropped_at_no_rate(p) -> None:
    values = torch.randn(1000)
    assert torch.equal(dropout(values, p, training=True), values)


def test_evaluation_changes_nothing_and_other_types_are_torchs() -> None:
    layer, values = Dropout(0.5), torch.randn(1000)
    assert torch.equal(layer.eval()(values), values)
    share = (layer.train()(torch.ones(10_000, dtype=torch.bfloat16)) == 0).float().mean()
    assert 0.45 < share < 0.55


def test_a_seed_repeats_it_and_the_next_call_does_not() -> None:
    torch.manual_seed(4)
    first, second = (dropout(torch.ones(400), 0.5, True) for _ in range(2))
    torch.manual_seed(4)
    assert torch.equal(dropout(torch.ones(400), 0.5, True), first)
    assert not torch.equal(first, second)


def bias_of(kind: str) -> Tensor | None:
    if kind == "none":
        return None
    if kind == "mask":
        return (torch.arange(7) < torch.tensor([7, 4])[:, None])[:, None, None]
    return torch.randn((2 if kind == "bias" else 1), *SHAPE, dtype=torch.float32).requires_grad_()


@pytest.mark.parametrize("kind", ["none", "mask", "bias", "shared bias"])
def test_attention_and_its_gradients_are_those_of_the_formula(kind) -> None:
    torch.manual_seed(5)
    inputs = [torch.randn(2, 7, 3, 4).transpose(1, 2).requires_grad_() for _ in range(3)]
    bias, p = bias_of(kind), 0.3
    torch.manual_seed(6)
    context = dropped_attention(*inputs, bias, p)
    torch.manual_seed(6)
    dropped = torch.stack([draw_dropped(SHAPE, p) for _ in range(2)])
    query, key, value = inputs
    scores = query @ key.mT / 2
    if bias is not None:
        scores = scores.masked_fill(~bias, -math.inf) if bias.dtype == torch.bool else scores + bias
    expected = scores.softmax(-1).masked_fill(dropped, 0.0) / (1 - used_rate(p)) @ value
    torch.testing.assert_close(context, expected)
    leaves = inputs + ([bias] if bias is not None and bias.requires_grad else [])
    upper = torch.randn_like(context)
    for found, wanted in zip(*(torch.autograd.grad(out, leaves, upper) for out in (context, expected)), strict=True):
        torch.testing.assert_close(found, wanted)


def test_attention_has_the_expectation_of_attention_without_dropout() -> None:
    torch.manual_seed(7)
    query, key, value = (torch.randn(1, 2, 30, 8).expand(400, -1, -1, -1) for _ in range(3))
    plain = torch.nn.functional.scaled_dot_product_attention(query[:1], key[:1], value[:1])
    mean = dropped_attention(query, key, value, None, 0.1).mean(dim=0, keepdim=True)
    assert (mean - plain).abs().max() < 0.1 * plain.std()


def test_installed_it_replaces_every_dropout_of_an_encoder_and_none_of_its_parameters() -> None:
    config = EncoderConfig(
        embed_dim=8, num_heads=2, head_dim=4, attention_heads=((0, 1), None), ffn_dims=(6, 6), positional_groups=2,
        conv_layers=((8, 400, 320),), positional_kernel=4, feature_dropout=0.1, hidden_dropout=0.2,
        attention_dropout=0.3, activation_dropout=0.4,
    )  # fmt: skip
    encoder = SpeechEncoder(config).train()
    names, waveforms = list(encoder.state_dict()), torch.randn(2, 4000)
    with torch.no_grad():
        expected = encoder.eval()(waveforms).last_hidden_state
    install(encoder.train())
    dropouts = [module for module in encoder.modules() if isinstance(module, torch.nn.Dropout)]
    assert {type(module) for module in dropouts} == {Dropout}
    assert sorted(module.p for module in dropouts) == [0.1, 0.2, 0.2, 0.2, 0.3, 0.4, 0.4]
    assert encoder.layers[0].attention.attend is dropped_attention
    assert list(encoder.state_dict()) == names
    for attention_maps in (False, True):
        torch.manual_seed(8)
        first, second = (encoder(waveforms, attention_maps=attention_maps).last_hidden_state for _ in range(2))
        torch.manual_seed(8)
        assert torch.equal(encoder(waveforms, attention_maps=attention_maps).last_hidden_state, first)
        assert not torch.equal(first, second)
    with torch.no_grad():
        assert torch.equal(encoder.eval()(waveforms).last_hidden_state, expected)
