"""The cut student computes what the gated student computed, and weighs what was expected of it."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from distiller.students.config import PruningConfig
from distiller.students.expected_parameters import expected_parameters, opened
from distiller.students.gates import GatedEncoder, GateSite
from distiller.students.lagrangian import SparsityLagrangian
from distiller.students.prune import remove_closed_units
from upstream.checkpoint import load, save
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder

UNITS = ("channels", "heads", "ffn_units", "attention", "ffn")
BASE = EncoderConfig(
    embed_dim=16,
    num_heads=4,
    head_dim=4,
    attention_heads=((0, 1, 2, 3),) * 3,
    ffn_dims=(10,) * 3,
    conv_layers=((8, 10, 5), (7, 3, 2), (6, 2, 2)),
    positional_kernel=4,
    positional_groups=2,
    relative_buckets=8,
    relative_max_distance=16,
)
LARGE = replace(BASE, conv_norm="layer", conv_bias=True, layer_norm_first=True)
SHAPES = {
    "hubert": BASE,
    "wavlm": replace(BASE, family="wavlm"),
    "wav2vec2": replace(BASE, family="wav2vec2", normalize_waveform=True),
    "large hubert": LARGE,
    "large wavlm": replace(LARGE, family="wavlm"),
    "large wav2vec2": replace(LARGE, family="wav2vec2"),
    "data2vec": replace(BASE, family="data2vec-audio", conv_norm="layer", positional_layers=2),
    "no norm before the projection": replace(BASE, feature_norm=False),
    "scaled": replace(BASE, feature_scale=True),
    "narrow": replace(BASE, conv_layers=((8, 10, 5), (7, 3, 2), (16, 2, 2)), projection=False),
    "uneven": replace(BASE, attention_heads=((0, 2), None, ()), ffn_dims=(None, 0, 5)),
    "pruned before": replace(LARGE, conv_layers=((5, 10, 5), (7, 3, 2), (6, 2, 2)), unpruned_channels=(8, 7, 9)),
}


def gated(config: EncoderConfig, units=UNITS, seed: int = 0) -> GatedEncoder:
    """A gated encoder none of whose parameters has a special value."""
    torch.manual_seed(seed)
    encoder = SpeechEncoder(config)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    for name, parameter in encoder.named_parameters():
        if "norm.weight" in name or name.endswith("scale"):
            parameter.data += 1
    return GatedEncoder(encoder, dict.fromkeys(units, 0.1)).eval()


def random_values(student: GatedEncoder, seed: int = 0) -> dict[GateSite, torch.Tensor]:
    """About half of the units closed, the others anywhere in (0, 1]; a channel stays."""
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for site, count in student.sites.items():
        value = torch.rand(count, generator=generator)
        value[torch.rand(count, generator=generator) < 0.5] = 0
        if site.unit == "channels" and not value.any():
            value[0] = 0.7
        values[site] = value
    return values


def assert_same_output(student: GatedEncoder, values, cut_student: SpeechEncoder) -> None:
    """In double precision: layer norms over the few channels left here blow up the rounding of single precision."""
    waveforms = torch.randn(2, 500, generator=torch.Generator().manual_seed(1)).double()
    lengths = torch.tensor([500, 337])
    with torch.no_grad():
        expected = copy.deepcopy(student).double().forward(waveforms, lengths, values=values)
        found = copy.deepcopy(cut_student).double()(waveforms, lengths)
    pairs = zip(
        [expected.projected, *expected.hidden_states, expected.last_hidden_state],
        [found.projected, *found.hidden_states, found.last_hidden_state],
        strict=True,
    )
    for left, right in pairs:
        torch.testing.assert_close(right, left, atol=1e-4, rtol=0)


def parameters(encoder: nn.Module) -> int:
    return sum(parameter.numel() for parameter in encoder.parameters())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(4))
def test_exact_for_random_gates_on_everything(shape, seed):
    student = gated(SHAPES[shape], seed=seed)
    values = random_values(student, seed)
    left = remove_closed_units(student, values)
    assert_same_output(student, values, left)
    assert parameters(left) == round(float(expected_parameters(student.config, opened(values))))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("unit", UNITS)
def test_exact_for_each_unit_alone(shape, unit):
    student = gated(SHAPES[shape], [unit])
    if not student.sites:
        pytest.skip(f"{shape} has no {unit}")
    values = random_values(student, seed=5)
    left = remove_closed_units(student, values)
    assert_same_output(student, values, left)
    assert parameters(left) == round(float(expected_parameters(student.config, opened(values))))


@pytest.mark.parametrize("shape", ["hubert", "wavlm", "large hubert", "large wavlm"])
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("layer", [0, 2])
def test_exact_when_a_sublayer_is_emptied(shape, unit, layer):
    student = gated(SHAPES[shape])
    values = {site: torch.ones(count) for site, count in student.sites.items()}
    site = GateSite(unit, layer)
    values[site] = torch.zeros_like(values[site])
    if unit == "channels":
        values[site][3] = 0.4
    left = remove_closed_units(student, values)
    assert_same_output(student, values, left)
    assert parameters(left) == round(float(expected_parameters(student.config, opened(values))))
    emptied = {
        "heads": (left.config.attention_heads[layer], ()),
        "ffn_units": (left.config.ffn_dims[layer], 0),
        "attention": (left.config.attention_heads[layer], None),
        "ffn": (left.config.ffn_dims[layer], None),
        "channels": (left.config.conv_layers[layer][0], 1),
    }
    assert emptied[unit][0] == emptied[unit][1]


@torch.no_grad()
@pytest.mark.parametrize("settled", [False, True])
def test_the_gates_of_evaluation_are_the_default(settled):
    """Also those that `settle_gates` has settled by a shift, where rounding each site would miss the target."""
    student = gated(BASE)
    for gate in student.by_site().values():
        nn.init.normal_(gate.log_alpha, std=1.0)
    rule, total = student.fixed(), parameters(student.encoder)
    if settled:
        target = 1 - float(expected_parameters(BASE, student.probabilities())) / total
        sparsity = SparsityLagrangian(
            PruningConfig(target=target, units=list(UNITS)), BASE, total, steps=1
        ).settle_gates(student)
        assert abs(sparsity - target) < abs(1 - float(expected_parameters(BASE, opened(rule))) / total - target)
        assert 1 - parameters(remove_closed_units(student)) / total == pytest.approx(sparsity, abs=1e-6)
    assert settled == any(not torch.equal(value, rule[site]) for site, value in student.fixed().items())
    left = remove_closed_units(student)
    assert_same_output(student, student.fixed(), left)
    waveforms = torch.randn(1, 500)
    with torch.no_grad():
        torch.testing.assert_close(
            left(waveforms).last_hidden_state, student(waveforms).last_hidden_state, atol=1e-4, rtol=0
        )


def test_all_open_at_one_is_the_encoder_itself_plus_its_scale():
    student = gated(BASE)
    values = {site: torch.ones(count) for site, count in student.sites.items()}
    left = remove_closed_units(student, values)
    assert left.config == replace(BASE, feature_scale=True)
    for key, value in student.encoder.state_dict().items():
        assert torch.equal(left.state_dict()[key], value), key


def test_the_student_is_not_changed():
    student = gated(LARGE)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    left = remove_closed_units(student, random_values(student))
    for parameter in left.parameters():
        parameter.data.fill_(1.0)
    assert all(torch.equal(before[key], value) for key, value in student.state_dict().items())


@pytest.mark.parametrize("shape", ["hubert", "large wavlm"])
def test_no_dead_parameters_in_the_file(shape, tmp_path):
    student = gated(SHAPES[shape])
    values = random_values(student, seed=3)
    left = remove_closed_units(student, values)
    save(left, tmp_path / "student")
    size = (tmp_path / "student" / "model.safetensors").stat().st_size
    assert abs(size - 4 * parameters(left)) < 16_384  # names and shapes
    assert_same_output(student, values, load(tmp_path / "student"))


def test_cut_twice():
    student = gated(LARGE)
    once = remove_closed_units(student, random_values(student, seed=1))
    again = GatedEncoder(once, dict.fromkeys(UNITS, 0.1)).eval()
    values = random_values(again, seed=2)
    twice = remove_closed_units(again, values)
    assert_same_output(again, values, twice)
    assert parameters(twice) == round(float(expected_parameters(again.config, opened(values))))
    assert twice.config.unpruned_channels == (8, 7, 6)
