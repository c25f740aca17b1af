"""Expected size at paper scale, the Lagrangian's course from both sides, and targets that cannot be."""

import copy
import math

import pytest
import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from distiller.common.strict import typed
from distiller.objectives.registry import build
from distiller.recipes.recipe import load_recipe
from distiller.students.config import PruningConfig
from distiller.students.expected_parameters import expected_parameters, opened
from distiller.students.gates import GatedEncoder, gated_sites
from distiller.students.lagrangian import SparsityLagrangian, time_scale
from distiller.students.prune import pruned_shape
from distiller.teachers.teacher import load_teacher
from distiller.training.config import OptimizerConfig
from distiller.training.module import schedule
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError

HUBERT_BASE = EncoderConfig(
    embed_dim=768, num_heads=12, head_dim=64, attention_heads=(tuple(range(12)),) * 12, ffn_dims=(3072,) * 12
)
WAVLM_BASE = EncoderConfig(**{**HUBERT_BASE.to_dict(), "family": "wavlm"})
SMALL = EncoderConfig(  # the bundled teacher's shape
    embed_dim=192,
    num_heads=4,
    head_dim=48,
    attention_heads=(tuple(range(4)),) * 6,
    ffn_dims=(512,) * 6,
    conv_layers=tuple(
        (channels, 10, 5) if not i else (channels, 3, 2) for i, channels in enumerate((32,) * 3 + (48, 64))
    ),
)
DPHUBERT = ["channels", "heads", "ffn_units"]


def real_parameters(config: EncoderConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in SpeechEncoder(config).parameters())


def gated(config: EncoderConfig, pruning: PruningConfig, seed: int = 0) -> GatedEncoder:
    torch.manual_seed(seed)
    with torch.device("meta"):
        encoder = SpeechEncoder(config)
    return GatedEncoder(encoder, pruning.drops)


def shift_to(student: GatedEncoder, pruning: SparsityLagrangian, sparsity: float) -> None:
    """Add one number to every log alpha so that the expected sparsity is as wished."""
    low, high, now = -30.0, 30.0, 0.0
    for _ in range(60):
        middle = (low + high) / 2
        for gate_ in student.by_site().values():
            gate_.log_alpha.data += middle - now
        now = middle
        low, high = (middle, high) if pruning.sparsity(student.probabilities()) > sparsity else (low, middle)


@pytest.mark.parametrize(("config", "total"), [(HUBERT_BASE, 94_370_944), (WAVLM_BASE, 94_381_168)])
def test_base_models(config, total):
    assert real_parameters(config) == total
    assert float(expected_parameters(config, {})) == total
    student = gated(config, PruningConfig())
    pruning = SparsityLagrangian(PruningConfig(), config, total, steps=50_000)
    assert pruning.sparsity(student.probabilities()).item() == pytest.approx(0.10, abs=0.005)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        for gate_ in student.by_site().values():
            gate_.log_alpha.data = 4 * torch.randn(gate_.log_alpha.shape, generator=generator)
        shift_to(student, pruning, 0.75)
        sparsity = pruning.settle_gates(student)
        left = real_parameters(pruned_shape(config, student.fixed()))
        assert 1 - left / total == pytest.approx(sparsity, abs=1e-9)
        assert 23_500_000 <= left <= 23_700_000


@torch.no_grad()
@pytest.mark.parametrize("config", [HUBERT_BASE, WAVLM_BASE])
def test_200_masks_sampled_weigh_what_is_expected_within_two_per_mille(config):
    student = gated(config, PruningConfig(drop=0.3)).train()
    for gate_ in student.by_site().values():
        gate_.log_alpha.data += torch.randn(gate_.log_alpha.shape)
    expected = float(expected_parameters(config, student.probabilities()))
    torch.manual_seed(1)
    masks = [student.draw() for _ in range(200)]
    counts = [float(expected_parameters(config, opened(mask))) for mask in masks]
    assert counts[:4] == [real_parameters(pruned_shape(config, mask)) for mask in masks[:4]]
    assert sum(counts) / len(counts) == pytest.approx(expected, rel=2e-3)


def controlled(
    pruning_config: PruningConfig, steps: int, start: float | None = None, pull: float = 0.0
) -> SparsityLagrangian:
    """Gates and multipliers alone, under the recipe's schedule; `pull` stands for a loss that wants everything kept."""
    total = real_parameters(SMALL)
    student = gated(SMALL, pruning_config)
    pruning = SparsityLagrangian(pruning_config, SMALL, total, steps)
    if start is not None:
        shift_to(student, pruning, start)
    optimizer = AdamW(pruning.parameter_groups(student))
    scheduler = LambdaLR(optimizer, schedule(OptimizerConfig(warmup=0.3), steps))
    for step in range(steps):
        penalty, logged = pruning(student, step)
        optimizer.zero_grad()
        (penalty + pull * pruning.sparsity(student.probabilities())).backward()
        optimizer.step()
        scheduler.step()
    assert logged["sparsity"] == pytest.approx(pruning_config.target, abs=0.01)
    sparsity = pruning.settle_gates(student)
    assert sparsity == pytest.approx(1 - real_parameters(pruned_shape(SMALL, student.fixed())) / total, abs=1e-6)
    assert sparsity == pytest.approx(pruning_config.target, abs=0.01)
    assert pruning.met(sparsity)
    return pruning


@pytest.mark.slow
def test_a_short_run_meets_its_target_from_below():
    pruning = controlled(PruningConfig(target=0.6), steps=150)
    assert pruning.lambda2 > 0


def test_a_short_run_meets_its_target_against_a_loss():
    pruning = controlled(PruningConfig(target=0.75), steps=150, pull=1.0)
    assert pruning.lambda1 < 0  # the multiplier has found the loss's slope: it pays for sparsity


@pytest.mark.slow
def test_a_short_run_meets_its_target_from_above():
    controlled(PruningConfig(target=0.3), steps=150, start=0.8)


@pytest.mark.parametrize("objective", ["layers", pytest.param("star", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("target", "start"), [(0.75, None), pytest.param(0.75, 0.84, marks=pytest.mark.slow)])
def test_100_steps_meet_the_target_against_a_real_loss_with_the_weights_frozen(objective, target, start):
    teacher = load_teacher("bundled").eval()
    recipe = load_recipe("dphubert", [f"objective={objective}", f"pruning.target={target}"])
    torch.manual_seed(0)
    student = GatedEncoder(copy.deepcopy(teacher).requires_grad_(False), recipe.pruning.drops).train()
    pruning = SparsityLagrangian(recipe.pruning, teacher.config, real_parameters(teacher.config), steps=100)
    if start is not None:
        shift_to(student, pruning, start)
    match = build(recipe.objective, teacher.config, teacher.config)
    waveforms, lengths = 0.1 * torch.randn(2, 4000), torch.tensor([4000, 4000])
    with torch.no_grad():
        wanted = teacher(waveforms, lengths)
    mask = wanted.frame_mask()
    counts = {"utterance": 2, "frame": int(mask.sum())}
    optimizer = AdamW(pruning.parameter_groups(student))
    scheduler = LambdaLR(optimizer, schedule(recipe.optimizer, 100))
    for step in range(100):
        penalty, _ = pruning(student, step)
        terms = match(wanted, student(waveforms, lengths), mask)
        optimizer.zero_grad()
        (penalty + sum(term.weight * term.total / counts[term.unit] for term in terms)).backward()
        optimizer.step()
        scheduler.step()
    assert pruning.sparsity(student.probabilities()).item() == pytest.approx(target, abs=0.01)
    assert pruning.met(pruning.settle_gates(student))


def test_short_runs_are_long_runs_fast_forward():
    assert time_scale(5000) == time_scale(50_000) == 1
    assert time_scale(500) == 10
    student = gated(SMALL, PruningConfig())
    for steps, rates in ((500, (0.2, 0.2, 2.0)), (25_000, (0.02, 0.02, 0.04)), (50_000, (0.02, 0.02, 0.02))):
        pruning = SparsityLagrangian(PruningConfig(), SMALL, real_parameters(SMALL), steps)
        groups = pruning.parameter_groups(student)
        assert [group["lr"] for group in groups] == pytest.approx(rates)
        assert [group.get("maximize", False) for group in groups] == [False, True, True]
        assert [group["params"] for group in groups[1:]] == [[pruning.lambda1], [pruning.lambda2]]
        powers = (time_scale(steps), 50_000 / steps, 50_000 / steps)
        for group, power in zip(groups, powers, strict=True):
            assert group["betas"] == pytest.approx((0.9**power, 0.999**power))


def test_rounding_leaves_the_rule_where_that_is_on_the_target_and_never_hides_a_miss():
    total = real_parameters(SMALL)
    student = gated(SMALL, PruningConfig())
    for gate_ in student.by_site().values():
        gate_.log_alpha.data = 6 * torch.randn(gate_.log_alpha.shape)
    rule = student.fixed()
    reached = 1 - real_parameters(pruned_shape(SMALL, rule)) / total
    for target in (reached, reached - 0.2):
        sparsity = SparsityLagrangian(PruningConfig(target=target), SMALL, total, 200).settle_gates(student)
        values = student.fixed()
        assert all(torch.equal(values[site], rule[site]) for site in rule)
        assert sparsity == pytest.approx(reached, abs=1e-6)
    assert not SparsityLagrangian(PruningConfig(target=reached - 0.2), SMALL, total, 200).met(reached)


def test_penalty_by_hand():
    pruning = SparsityLagrangian(PruningConfig(target=0.6, warmup=0.5), SMALL, real_parameters(SMALL), steps=100)
    student = gated(SMALL, PruningConfig())
    pruning.lambda1.data.fill_(2.0)
    pruning.lambda2.data.fill_(3.0)
    assert [pruning.target(step) for step in (0, 25, 50, 99)] == pytest.approx([0, 0.3, 0.6, 0.6])
    penalty, logged = pruning(student, 25)
    excess = logged["sparsity"] - 0.3
    assert penalty.item() == pytest.approx(2 * excess + 3 * excess**2)
    penalty.backward()
    assert float(pruning.lambda1.grad) == pytest.approx(excess)
    assert float(pruning.lambda2.grad) == pytest.approx(excess**2)


def test_targets_that_cannot_be():
    total = real_parameters(HUBERT_BASE)
    for units, highest in ((["heads"], 0.29), (["ffn_units"], 0.59), (DPHUBERT, 0.94)):
        with pytest.raises(UserError, match=r"pruning.target is 0.95, but it must be at most 0\.\d+") as error:
            SparsityLagrangian(PruningConfig(target=0.95, units=units), HUBERT_BASE, total, 100)
        bound = float(str(error.value).split("at most ")[1].split(",")[0])
        assert bound == pytest.approx(highest, abs=0.02)
        SparsityLagrangian(PruningConfig(target=bound - 1e-3, units=units), HUBERT_BASE, total, 100)
    bare = EncoderConfig(**{**HUBERT_BASE.to_dict(), "ffn_dims": (None,) * 12})
    with pytest.raises(UserError, match=r"pruning.units is \['ffn_units'\]"):
        SparsityLagrangian(PruningConfig(units=["ffn_units"]), bare, total, 100)
    assert gated_sites(bare, ["ffn_units"]) == {}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"target": 0.0}, "pruning.target is 0.0"),
        ({"target": 1.0}, "pruning.target is 1.0"),
        ({"units": ["head"]}, "pruning.units is 'head'.*did you mean heads"),
        ({"units": []}, "pruning.units is "),
        ({"units": ["heads", "heads"]}, "pruning.units is "),
        ({"drop": 0.0}, "pruning.drop is 0.0"),
        ({"ffn_drop": 1.0}, "pruning.ffn_drop is 1.0"),
        ({"warmup": 1.0}, "pruning.warmup is 1.0"),
        ({"lr": math.nan}, "pruning.lr is nan"),
        ({"sparsity": 0.5}, "pruning.sparsity"),
    ],
)
def test_wrong_values(values, sentence):
    with pytest.raises(UserError, match=sentence):
        typed(PruningConfig, values, "pruning")
