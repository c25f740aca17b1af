"""The optimizer and trainer sections of a recipe."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from upstream.errors import UserError, require


@dataclass
class OptimizerConfig:
    """AdamW, its schedule over the optimiser steps, and gradient clipping."""

    lr: float = 1e-3  # peak
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 1e-6
    warmup: float = 0.05  # share of the steps over which lr rises from 0
    schedule: Literal["linear", "cosine", "constant"] = "linear"  # from the peak to 0, or no decay
    clip: float = 0.0  # largest norm of all gradients together; 0: no clipping

    def validate(self) -> None:
        require(0 < self.lr < math.inf, "optimizer.lr", self.lr, "a number above 0")
        require(
            all(0 <= beta < 1 for beta in self.betas), "optimizer.betas", self.betas, "two numbers from 0 to below 1"
        )
        require(0 < self.eps < 1, "optimizer.eps", self.eps, "a number between 0 and 1")
        require(0 <= self.weight_decay < 1, "optimizer.weight_decay", self.weight_decay, "a number from 0 to below 1")
        require(0 <= self.warmup < 1, "optimizer.warmup", self.warmup, "a share of the steps, from 0 to below 1")
        require(0 <= self.clip < math.inf, "optimizer.clip", self.clip, "a number above 0, or 0 for no clipping")


@dataclass
class TrainerConfig:
    """Length of the run, and what is handed to Lightning."""

    epochs: int | None = None  # either epochs or optimiser steps
    steps: int | None = None
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    devices: int | str = 1  # of each node: a count, "auto", or indices such as "0,2"
    num_nodes: int = 1
    strategy: Literal["auto", "ddp", "ddp_find_unused_parameters_true", "fsdp"] = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accumulate: int = 1  # batches of one device that make an optimiser step
    validate_every: int = 1000  # optimiser steps
    checkpoint_every: int = 1000  # optimiser steps
    ema: float = 0.0  # decay per optimiser step of the averaged student; 0: none
    checkpoint_activations: bool = False  # compute the student's layers again going backward: less memory, more time
    compile: bool = False  # torch.compile of the Transformer layers, for any shape

    def validate(self) -> None:
        lengths = {"trainer.epochs": self.epochs, "trainer.steps": self.steps}
        given = {key: value for key, value in lengths.items() if value is not None}
        if len(given) != 1:
            raise UserError(
                f"{'both' if given else 'neither'} trainer.epochs and trainer.steps are set; give one of them"
            )
        counts = {key: getattr(self, key) for key in ("num_nodes", "accumulate", "validate_every", "checkpoint_every")}
        for key, value in (given | {f"trainer.{key}": value for key, value in counts.items()}).items():
            require(value >= 1, key, value, "an integer of at least 1")
        possible = r"auto|[1-9]\d*|\d+(,\d+)+"
        allowed = "a count of at least 1, auto, or indices such as 0,2"
        require(bool(re.fullmatch(possible, str(self.devices))), "trainer.devices", self.devices, allowed)
        require(0 <= self.ema < 1, "trainer.ema", self.ema, "a decay below 1, or 0 for no averaging")
        if self.strategy == "fsdp":  # the average is not split; Lightning's sharding knows no gradient scaler
            require(not self.ema, "trainer.ema", self.ema, "0 with trainer.strategy fsdp")
            possible = "32-true or bf16-mixed with trainer.strategy fsdp"
            require(self.precision != "16-mixed", "trainer.precision", self.precision, possible)
