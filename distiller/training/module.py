"""The trained module: a student, the loss of a micro-batch, the optimiser, and the progress of training."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from distiller.audio.batch import Batch
from distiller.objectives.base import Term
from distiller.training.config import OptimizerConfig
from distiller.training.layer_options import Shards
from upstream.encoder import SpeechEncoder

FUSED = {"cpu", "cuda"}  # devices on which torch's fused AdamW is used; on a CPU it needs a quarter of the time


class Progress:
    """The progress of training; part of every checkpoint. (Not a dataclass: Fabric would load into a copy of one.)"""

    def __init__(self) -> None:
        self.step = 0  # optimiser steps done
        self.position: tuple[int, int] | None = None  # (epoch, index) of the last step's batch in the stream
        self.first_loss: float | None = None
        self.elapsed = 0.0  # seconds of training in earlier processes
        self.started = time.perf_counter()

    def seconds(self) -> float:
        """Wall-clock seconds of training, earlier processes included."""
        return self.elapsed + time.perf_counter() - self.started

    def state_dict(self) -> dict[str, Any]:
        values = {"step": self.step, "position": self.position, "first_loss": self.first_loss}
        return values | {"elapsed": self.seconds()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class TrainingModule(nn.Module, ABC):
    """Trains `self.student` on the terms that `losses` computes for a micro-batch (`training.loop.fit`).

    Args:
        student: an encoder, or a module that runs one (a gated encoder).
        ema: decay per step of an averaged copy of the student; 0 for none.
    """

    def __init__(self, student: nn.Module, optimizer: OptimizerConfig, seed: int, ema: float = 0.0) -> None:
        super().__init__()
        self.student = student
        self.average: AveragedModel | None = None
        self.decay = ema
        if ema:
            self.average = AveragedModel(student).requires_grad_(False)
        self.optimizer_config, self.seed = optimizer, seed
        self.steps = 0  # optimiser steps of the whole run; `fit` sets it
        self.progress = Progress()
        self.shards: Shards | None = None  # with trainer.strategy=fsdp

    @abstractmethod
    def losses(self, batch: Batch) -> list[Term]:
        """The terms of one micro-batch, their totals summed over its units."""

    @abstractmethod
    def frame_lengths(self, batch: Batch) -> Tensor:
        """(batch,) valid frames of each utterance."""

    def finite_outputs(self, batch: Batch) -> dict[str, Tensor]:
        """Whether the inputs of the loss are finite: a boolean for the output of each network that it compares."""
        return {}

    def penalty(self) -> tuple[Tensor | float, dict[str, float | Tensor]]:
        """A term added to the loss of a whole step, independent of its batches, and values to log."""
        return 0.0, {}

    def special_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups with their own settings; all other parameters use the recipe's.

        A group with `first_step` N is frozen, without weight decay either, in the first N steps of the run.
        """
        return []

    def networks(self) -> list[nn.Module]:
        """The networks that a step runs; encoders' layers can be compiled and recomputed (`arrange_layers`)."""
        return [self.student]

    def move_frozen(self, device: torch.device, half: torch.dtype | None = None) -> None:
        """Move what the module uses but does not train to the training device, where autocast uses `half`."""

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one micro-batch, a share of its step's, and its terms' shares by name.

        Args:
            counts: number of utterances and valid frames of the step's global batch, by unit.
        """
        terms = self.losses(batch)
        loss = torch.stack([term.weight * term.total / counts[term.unit] for term in terms]).sum()
        return loss, {term.name: (term.total / counts[term.unit]).detach() for term in terms}

    def optimizer(self) -> torch.optim.AdamW:
        """AdamW without weight decay on biases and norms, fused if supported."""
        config, special = self.optimizer_config, self.special_groups()
        apart = {id(p) for group in special for p in group["params"]}
        trained = [p for p in self.parameters() if p.requires_grad and id(p) not in apart]
        groups = by_decay(trained, config.weight_decay)
        fused = all(p.device.type in FUSED for p in trained) or None  # None: torch chooses among the others
        adamw = torch.optim.AdamW([*groups, *special], lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)
        adamw.register_load_state_dict_pre_hook(_computed_as_here)
        return adamw

    @torch.no_grad()
    def update_average(self) -> None:
        """Update the average of the student after an optimiser step, before `progress` counts it.

        Not by `AveragedModel.update_parameters`, which waits for the device to learn how many steps it has averaged.
        """
        if self.average is None:
            return
        follow = get_ema_multi_avg_fn(self.decay if self.progress.step else 0.0)
        averages, values = ([p.data for p in part.parameters()] for part in (self.average.module, self.student))
        follow(averages, values, self.progress.step)
        self.average.n_averaged += 1

    def kept_student(self) -> SpeechEncoder:
        """The student to save: the averaged one if there is one."""
        kept = self.student if self.average is None else self.average.module
        assert isinstance(kept, SpeechEncoder)
        return kept

    def unsharded(self) -> AbstractContextManager[None]:
        """A context in which every rank holds all parameters; every rank must enter it."""
        return nullcontext() if self.shards is None else self.shards.unsharded()


def by_decay(parameters: Iterable[nn.Parameter], weight_decay: float, **settings: Any) -> list[dict[str, Any]]:
    """Optimiser groups with `settings`: matrices with weight decay, biases and norms without."""
    parameters = list(parameters)
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay, **settings},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0, **settings},
    ]


def _computed_as_here(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's state with the implementation settings of this device, not those of the one that wrote it."""
    pairs = zip(state["param_groups"], optimizer.param_groups, strict=True)
    return state | {"param_groups": [saved | {"fused": group["fused"]} for saved, group in pairs]}


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of one rank's random numbers in one step; distinct for distinct steps and ranks."""
    return (seed * 1_000_003 + step) * 4096 + rank


def schedule(config: OptimizerConfig, steps: int) -> Any:
    """Factor on the peak learning rate by optimiser step: linear warm-up, then linear, cosine or no decay to 0."""
    warmup = max(1, round(config.warmup * steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        if config.schedule == "linear":
            return 1.0 - progress
        if config.schedule == "cosine":
            return 0.5 * (1.0 + float(torch.cos(torch.tensor(progress * torch.pi))))
        return 1.0

    return factor
