"""The optimizer and trainer sections of a recipe."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Strict, model_validator
from pydantic.dataclasses import dataclass

from distiller.common.strict import ABOVE_0, AT_LEAST_1, SHARE_OF_STEPS, STRICT, check
from upstream.errors import UserError, require

DEVICES = re.compile(r"auto|[1-9]\d*|\d+(,\d+)+")


def _switch(value: Any) -> Any:
    """Runs before type validation, whose error for a wrong value would name text in place of `auto`."""
    if not (isinstance(value, bool) or value == "auto"):
        raise ValueError
    return value


@dataclass(config=STRICT)
class OptimizerConfig:
    """AdamW, its schedule over the optimiser steps, and gradient clipping."""

    lr: Annotated[float, ABOVE_0] = 1e-3  # peak
    betas: Annotated[
        tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]],
        Field(description="two numbers from 0 to below 1"),
        Strict(False),  # a list in YAML
    ] = (0.9, 0.98)
    eps: Annotated[float, Field(gt=0, lt=1, description="a number between 0 and 1")] = 1e-6
    weight_decay: Annotated[float, Field(ge=0, lt=1, description="a number from 0 to below 1")] = 1e-6
    warmup: Annotated[float, SHARE_OF_STEPS] = 0.05  # during which lr rises from 0
    schedule: Literal["linear", "cosine", "constant"] = "linear"  # from the peak to 0, or no decay
    # largest norm of all gradients together
    clip: Annotated[float, Field(ge=0, description="a number above 0, or 0 for no clipping")] = 0.0


@dataclass(config=STRICT)
class DistillationOptimizerConfig(OptimizerConfig):
    """The optimizer of a student, whose extractor may be newly initialised."""

    # learning rate of the convolutions' weights, as a multiple of lr
    extractor_lr_scale: Annotated[float, ABOVE_0] = 1.0


@dataclass(config=STRICT)
class TrainerConfig:
    """Length of the run, and how it is distributed, checked and kept."""

    epochs: Annotated[int | None, AT_LEAST_1] = None  # either epochs or optimiser steps
    steps: Annotated[int | None, AT_LEAST_1] = None
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    devices: Annotated[
        int | str,
        check(lambda devices: bool(DEVICES.fullmatch(str(devices)))),
        Field(description="a count of at least 1, auto, or indices such as 0,2"),
    ] = 1  # of each node
    num_nodes: Annotated[int, AT_LEAST_1] = 1
    strategy: Literal["auto", "ddp", "ddp_find_unused_parameters_true", "fsdp"] = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accumulate: Annotated[int, AT_LEAST_1] = 1  # batches of one device that make an optimiser step
    validate_every: Annotated[int, AT_LEAST_1] = 1000  # optimiser steps
    checkpoint_every: Annotated[int, AT_LEAST_1] = 1000  # optimiser steps
    # decay per optimiser step of the averaged student
    ema: Annotated[float, Field(ge=0, lt=1, description="a decay below 1, or 0 for no averaging")] = 0.0
    checkpoint_activations: bool = False  # recompute the student's layers in the backward pass: less memory, more time
    # torch.compile of the Transformer layers, for any shape; auto: on CUDA, if the run is long enough to pay off
    compile: Annotated[bool | str, BeforeValidator(_switch), Field(description="true, false or auto")] = "auto"

    @model_validator(mode="after")
    def _length_and_sharding(self) -> "TrainerConfig":
        if (self.epochs is None) == (self.steps is None):
            both = "both trainer.epochs and trainer.steps are set"
            neither = "neither trainer.epochs nor trainer.steps is set"
            raise UserError(f"{neither if self.epochs is None else both}; give one of them")
        if self.strategy == "fsdp":  # the average is not sharded, and a sharded model has no gradient scaler
            require(not self.ema, "trainer.ema", self.ema, "0 with trainer.strategy fsdp")
            possible = "32-true or bf16-mixed with trainer.strategy fsdp"
            require(self.precision != "16-mixed", "trainer.precision", self.precision, possible)
        return self
