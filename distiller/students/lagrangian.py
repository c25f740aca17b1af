"""Structured pruning to a target size: the Lagrangian that drives a gated encoder's expected sparsity to the target.

DPHuBERT (arXiv 2305.17651, section 2.2): s = 1 - E[parameters] / parameters of the teacher, and the loss gains
lambda1 (s - t) + lambda2 (s - t)^2, minimised over gates and weights, maximised over the lambdas.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from distiller.students.config import PruningConfig
from distiller.students.expected_parameters import expected_parameters, opened
from distiller.students.gates import GatedEncoder, GateValues, gated_sites
from upstream.config import EncoderConfig
from upstream.errors import UserError, require

# Runs of fewer steps move gates and lambda1 faster, see `time_scale`. DPHuBERT's rate of 0.02 closes an open head's
# gate in 310 steps: far too slow for runs of a few hundred steps, fast enough for its own 50,000.
FULL_RATE_STEPS = 5000
# Runs of fewer steps let lambda2 grow faster and both multipliers forget faster, relative to DPHuBERT's 50,000. lambda2
# is the damping: lambda1 grows until the target is passed, and in a short run the oscillation has no time to die out.
# And Adam's steps for the final gap are small while it still remembers the large gap of the rising target.
DAMPING_STEPS = 50_000
TOLERANCE = 0.01  # of sparsity, within which a target counts as met
ROUNDING = 0.001  # of sparsity, by which rounding the gates may miss the target
ROUNDING_SHIFT = 4.0  # of log alpha, the largest that rounding may need


class SparsityLagrangian(nn.Module):
    """The Lagrangian of one run: expected sparsity of a gated encoder against a rising target.

    `lambda1` and `lambda2` start at 0 and are maximised (`parameter_groups`).
    """

    def __init__(self, config: PruningConfig, encoder: EncoderConfig, parameters: int, steps: int) -> None:
        """
        Args:
            encoder: the student's shape before pruning.
            parameters: of the teacher; sparsity is a share of them.
            steps: of the stage, for the target's warm-up and the rates.

        Raises:
            UserError: a target that cannot be reached even with every gate closed, or nothing to prune.
        """
        super().__init__()
        self.config, self.encoder, self.parameters_before, self.steps = config, encoder, parameters, steps
        self.lambda1 = nn.Parameter(torch.zeros(()))
        self.lambda2 = nn.Parameter(torch.zeros(()))
        _check_reachable(config, encoder, parameters)

    def sparsity(self, probabilities: GateValues) -> Tensor:
        """Expected share of the teacher's parameters that is removed if gates are open with these probabilities."""
        return 1 - expected_parameters(self.encoder, probabilities) / self.parameters_before

    def target(self, step: int) -> float:
        """The target in optimiser step 0, 1, ...: it rises linearly from 0, then stays constant."""
        return self.config.target * min(1.0, step / max(1, round(self.config.warmup * self.steps)))

    def forward(self, student: GatedEncoder, step: int) -> tuple[Tensor, dict[str, float | Tensor]]:
        """The penalty of one optimiser step, to be added once to its loss, and values to log."""
        sparsity = self.sparsity(student.probabilities())
        excess = sparsity - self.target(step)
        penalty = self.lambda1 * excess + self.lambda2 * excess.square()
        logged = {"sparsity": sparsity.detach(), "lambda1": self.lambda1.detach(), "lambda2": self.lambda2.detach()}
        return penalty, {"target": self.target(step)} | logged

    def parameter_groups(self, student: GatedEncoder) -> list[dict[str, Any]]:
        """Optimiser groups of gates (minimised) and multipliers (maximised); they follow the weights' schedule."""
        scale, damping = time_scale(self.steps), time_scale(self.steps, DAMPING_STEPS)
        gates = {"params": [gate.log_alpha for gate in student.by_site().values()]}
        groups = [
            gates | {"lr": self.config.lr * scale, "betas": (0.9**scale, 0.999**scale)},
            {"params": [self.lambda1], "lr": self.config.lr * scale, "maximize": True},
            {"params": [self.lambda2], "lr": self.config.lr * damping, "maximize": True},
        ]
        return [{"betas": (0.9**damping, 0.999**damping), "weight_decay": 0.0} | group for group in groups]

    @torch.no_grad()
    def settle_gates(self, student: GatedEncoder) -> float:
        """Fix the gates that `student` uses in evaluation; returns the sparsity of pruning with them.

        If rounding the number of zeros of each site misses the target by more than ROUNDING although the expectation
        meets it (few heads, half-open gates), all counts are rounded after a common shift of log alpha that meets the
        target (our choice); it becomes the student's `shift`.
        """
        target = self.config.target
        expected, sparsity = float(self.sparsity(student.probabilities())), self._shifted(student, 0.0)
        if abs(sparsity - target) <= ROUNDING or abs(expected - target) > TOLERANCE:
            return sparsity
        low, high = -ROUNDING_SHIFT, ROUNDING_SHIFT
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self._shifted(student, middle) > target else (low, middle)
        best = min((0.0, low, high), key=lambda shift: abs(self._shifted(student, shift) - target))
        return self._shifted(student, best)

    def _shifted(self, student: GatedEncoder, shift: float) -> float:
        """The sparsity of pruning with this shift, which is set on the student."""
        student.shift = shift
        return float(self.sparsity(opened(student.fixed())))

    def met(self, sparsity: float) -> bool:
        """Whether a sparsity is on the target, within TOLERANCE."""
        return abs(sparsity - self.config.target) <= TOLERANCE


def time_scale(steps: int, full: int = FULL_RATE_STEPS) -> float:
    """How much faster gates and multipliers must move in a run of fewer steps than `full`.

    With rates times k and Adam's betas to the power of k, full / k steps follow the course of `full` steps (our choice;
    scaling the rates alone overshoots, since Adam's memory then spans the run).
    """
    return max(1.0, full / steps)


def _check_reachable(config: PruningConfig, encoder: EncoderConfig, parameters: int) -> None:
    """Raises UserError when closing every gate (but a channel per convolution) would not reach the target."""
    sites = gated_sites(encoder, config.units)
    if not sites:
        raise UserError(f"pruning.units is {config.units}, but the teacher has none of these units")
    closed = {site: torch.zeros(count) for site, count in sites.items()}
    for site, chances in closed.items():
        chances[0] = float(site.unit == "channels")
    reachable = 1 - float(expected_parameters(encoder, closed)) / parameters
    require(
        config.target <= reachable,
        "pruning.target",
        config.target,
        f"at most {math.floor(1000 * reachable) / 1000:g}, reached when every gate of pruning.units is closed",
    )
