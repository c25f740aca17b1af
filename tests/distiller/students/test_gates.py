"""Hard-concrete gates: the distribution, the evaluation rule, where they act, copies of a gated encoder."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from distiller.students.gates import GatedEncoder, GateSite, HardConcrete, gated_sites
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder

CONFIG = EncoderConfig(
    embed_dim=12,
    num_heads=3,
    head_dim=4,
    attention_heads=((0, 1, 2), None, (0, 2), ()),
    ffn_dims=(10, 8, 0, None),
    conv_layers=((6, 10, 5), (5, 8, 4)),
    positional_kernel=4,
    positional_groups=2,
)
EVERY_UNIT = dict.fromkeys(("channels", "heads", "ffn_units", "attention", "ffn"), 0.1)


def test_initial_probabilities():
    torch.manual_seed(0)
    for drop, log_alpha, probability in ((0.01, 4.595, 0.998), (0.5, 0.0, 0.832)):
        gate = HardConcrete(4000, drop)
        assert gate.log_alpha.mean().item() == pytest.approx(log_alpha, abs=1e-3)
        assert gate.log_alpha.std().item() == pytest.approx(0.01, abs=1e-3)
        assert gate.open_probability().mean().item() == pytest.approx(probability, abs=1e-3)


def test_samples_follow_their_probability_and_mean():
    torch.manual_seed(0)
    gate = HardConcrete(200_000, 0.5)
    sample = gate.sample()
    assert (sample > 0).float().mean().item() == pytest.approx(0.832, abs=4e-3)
    assert sample.mean().item() == pytest.approx(0.5, abs=4e-3)
    assert sample.min().item() == 0
    assert sample.max().item() == 1
    sample.sum().backward()
    moved = (sample > 0) & (sample < 1)
    assert bool((gate.log_alpha.grad[moved] > 0).all())
    assert bool((gate.log_alpha.grad[~moved] == 0).all())


def test_evaluation_rule():
    gate = HardConcrete(5, 0.5)
    gate.log_alpha.data = torch.tensor([3.0, -6.0, 0.5, -4.0, -1.0])
    # P(z > 0) = sigmoid(log alpha + 1.5986) = .9900, .0121, .8908, .0831, .6453: 5 - 2.6213 rounds to 2 zeros
    expected = [1 / (1 + math.exp(-0.8 * x * 1.5)) for x in (3.0, 0.5, -1.0)]
    values = gate.deterministic()
    torch.testing.assert_close(values, torch.tensor([expected[0], 0, expected[1], 0, expected[2]]))
    gate.log_alpha.data = torch.full((5,), -9.0)
    assert gate.deterministic().count_nonzero() == 0
    assert gate.deterministic(at_least=1).count_nonzero() == 1


def test_sites_are_what_the_encoder_still_has():
    assert gated_sites(CONFIG, EVERY_UNIT) == {
        GateSite("channels", 0): 6,
        GateSite("channels", 1): 5,
        GateSite("heads", 0): 3,
        GateSite("heads", 2): 2,
        GateSite("ffn_units", 0): 10,
        GateSite("ffn_units", 1): 8,
        GateSite("attention", 0): 1,
        GateSite("attention", 2): 1,
        GateSite("ffn", 0): 1,
        GateSite("ffn", 1): 1,
    }
    assert [site.unit for site in gated_sites(CONFIG, ["heads"])] == ["heads", "heads"]


def test_the_last_convolution_is_not_gated_when_nothing_projects_it():
    config = EncoderConfig(
        embed_dim=12,
        num_heads=3,
        head_dim=4,
        attention_heads=((0,),),
        ffn_dims=(4,),
        conv_layers=((6, 10, 5), (12, 8, 4)),
        projection=False,
        positional_groups=2,
    )
    assert gated_sites(config, ["channels"]) == {GateSite("channels", 0): 6}


@pytest.fixture
def student() -> GatedEncoder:
    torch.manual_seed(0)
    return GatedEncoder(SpeechEncoder(CONFIG), EVERY_UNIT)


def open_values(student: GatedEncoder) -> dict[GateSite, torch.Tensor]:
    return {site: torch.ones(count) for site, count in student.sites.items()}


def test_open_gates_change_nothing_and_each_gate_does_when_it_closes(student):
    student.eval()
    waveforms = torch.randn(2, 400)
    plain = SpeechEncoder(CONFIG).eval()
    plain.load_state_dict(student.encoder.state_dict())
    reference = plain(waveforms).last_hidden_state
    torch.testing.assert_close(student.forward(waveforms, values=open_values(student)).last_hidden_state, reference)
    for site, count in student.sites.items():
        for unit in range(count):
            values = open_values(student)
            values[site] = values[site].index_fill(0, torch.tensor([unit]), 0.0)
            changed = student.forward(waveforms, values=values).last_hidden_state
            assert (changed - reference).abs().max() > 1e-6, (site, unit)


def test_each_head_gates_its_own_channels(student):
    student.eval()
    waveforms = torch.randn(1, 400)
    values = open_values(student)
    values[GateSite("heads", 0)] = torch.tensor([1.0, 0.0, 0.5])
    gated = student.forward(waveforms, values=values).hidden_states[1]
    projection = student.encoder.layers[0].attention.out_proj.weight.data
    projection[:, 4:8] = 0
    projection[:, 8:] *= 0.5
    torch.testing.assert_close(student.forward(waveforms, values=open_values(student)).hidden_states[1], gated)


@pytest.mark.parametrize("conv_norm", ["group", "layer"])
def test_gates_in_the_weights_are_gates_on_what_units_hand_on(conv_norm: str) -> None:
    config = replace(CONFIG, conv_norm=conv_norm, conv_bias=conv_norm == "layer")
    student = GatedEncoder(SpeechEncoder(config), EVERY_UNIT).eval()
    values = {site: torch.rand(count) for site, count in student.sites.items()}
    plain = SpeechEncoder(config).eval()
    plain.load_state_dict(student.encoder.state_dict())
    for site, value in values.items():
        multiply_what_is_handed_on(plain, site, value)
    waveforms, lengths = torch.randn(2, 400), torch.tensor([400, 310])
    with torch.no_grad():  # the form in which a convolution hands its channels on
        expected, found = plain(waveforms, lengths), student.forward(waveforms, lengths, values=values)
    valid = int(found.frame_lengths[1])
    for left, right in zip(found.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(left[0], right[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(left[1, :valid], right[1, :valid], atol=1e-4, rtol=1e-4)


def multiply_what_is_handed_on(encoder: SpeechEncoder, site: GateSite, value: torch.Tensor) -> None:
    if site.unit == "channels":
        convolution = encoder.feature_extractor.conv_layers[site.layer]
        for module in (convolution, convolution.conv) if encoder.config.conv_norm == "layer" else (convolution,):
            module.register_forward_hook(lambda module, inputs, output: output * value[:, None])
        return
    layer = encoder.layers[site.layer]
    linear = layer.attention.out_proj if site.unit in ("heads", "attention") else layer.feed_forward.output
    if site.unit in ("heads", "ffn_units"):
        width = linear.in_features // len(value)
        linear.register_forward_pre_hook(lambda module, inputs: (inputs[0] * value.repeat_interleave(width),))
    else:
        linear.register_forward_hook(lambda module, inputs, output: output * value)


def test_training_samples_and_evaluation_does_not(student):
    waveforms = torch.randn(1, 400)
    first, second = (student.train()(waveforms).last_hidden_state for _ in range(2))
    assert not torch.equal(first, second)
    first, second = (student.eval()(waveforms).last_hidden_state for _ in range(2))
    assert torch.equal(first, second)


def test_every_gate_and_weight_gets_a_gradient(student):
    student.train()
    torch.manual_seed(3)
    for _ in range(20):  # a single sample leaves most gates at exactly 0 or 1
        output = student(torch.randn(2, 400))
        (output.projected.square().sum() + output.last_hidden_state.square().sum()).backward()
    for site, gate in student.by_site().items():
        assert gate.log_alpha.grad.abs().sum() > 0, site
    assert all(parameter.grad is not None for parameter in student.encoder.parameters())


def test_a_copy_has_gates_of_its_own(student):
    student.train()(torch.randn(1, 400)).last_hidden_state.sum().backward()
    twin = copy.deepcopy(student).eval()
    student.eval()
    waveforms = torch.randn(1, 400)
    before = student(waveforms).last_hidden_state
    assert torch.equal(twin(waveforms).last_hidden_state, before)
    for gate in twin.by_site().values():
        gate.log_alpha.data.fill_(-9.0)
    assert not torch.equal(twin(waveforms).last_hidden_state, before)
    assert torch.equal(student(waveforms).last_hidden_state, before)


def test_state_survives_saving(student):
    other = GatedEncoder(SpeechEncoder(CONFIG), EVERY_UNIT).eval()
    other.load_state_dict(student.state_dict())
    waveforms = torch.randn(1, 400)
    assert torch.equal(other(waveforms).last_hidden_state, student.eval()(waveforms).last_hidden_state)


def test_the_bare_encoder_stays_what_it_was():
    encoder, waveforms = SpeechEncoder(CONFIG).eval(), torch.randn(1, 400)
    before, names = encoder(waveforms).last_hidden_state, list(encoder.state_dict())
    GatedEncoder(encoder, EVERY_UNIT)
    assert torch.equal(encoder(waveforms).last_hidden_state, before)
    assert list(encoder.state_dict()) == names
