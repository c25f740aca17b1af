"""Where a run takes place: the devices that a recipe asks for, those available, and how much audio fits on one."""

import math
import os
from collections.abc import Callable
from dataclasses import replace

from distiller.common.process import launcher, settle_launcher, started
from distiller.training.config import TrainerConfig
from upstream.config import SAMPLE_RATE
from upstream.errors import UserError, require

MEASURED = 30.0  # seconds of audio, about, of the smaller of the two steps whose memory is measured


def place(trainer: TrainerConfig) -> TrainerConfig:
    """The same with `auto` resolved for this machine, so that a continued run is placed alike.

    Raises:
        UserError: a device that this machine does not have, a number of processes that is not the launcher's, or a
            strategy or precision that the device does not support.
    """
    counts = _available()
    accelerator = _accelerator(trainer.accelerator, counts)
    devices = _devices(str(trainer.devices), accelerator, counts)
    _check_launcher(trainer, devices)
    settle_launcher()
    if accelerator == "cpu" and trainer.precision == "16-mixed":
        raise UserError("trainer.precision is '16-mixed', but on cpu it must be 32-true or bf16-mixed")
    if accelerator == "mps":
        require(trainer.strategy == "auto", "trainer.strategy", trainer.strategy, "auto on mps")
    return replace(trainer, accelerator=accelerator, devices=devices)


def _available() -> dict[str, int]:
    """Number of devices of each kind."""
    import torch  # takes seconds: not at the top, so that wrong recipes and --help do not wait for it

    return {
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
        "cpu": os.cpu_count() or 1,
    }


def _accelerator(wanted: str, counts: dict[str, int]) -> str:
    candidates = {"auto": ("cuda", "mps", "cpu"), "gpu": ("cuda", "mps")}.get(wanted, (wanted,))
    there = [kind for kind, count in counts.items() if count]
    for kind in candidates:
        if kind in there:
            return kind
    raise UserError(f"trainer.accelerator is '{wanted}', but this machine has only {' and '.join(there)}")


def _devices(wanted: str, accelerator: str, counts: dict[str, int]) -> int | str:
    """A count, or indices as they were given."""
    if accelerator == "cpu":  # its devices are processes, any number of them
        if "," in wanted:
            raise UserError(f"trainer.devices is '{wanted}', but on cpu it must be a count")
        return 1 if wanted == "auto" else int(wanted)
    count = counts[accelerator]
    if wanted == "auto":
        return count
    if "," in wanted:
        require(len(set(indices(wanted))) == len(indices(wanted)), "trainer.devices", wanted, "different indices")
    beyond = int(wanted) > count if wanted.isdecimal() else any(index >= count for index in indices(wanted))
    if beyond:
        have = f"a count up to {count}" + (f" or indices up to {count - 1}" if count > 1 else "")
        if launcher() == "SLURM" and count == 1:
            have = "every task all GPUs of its node, with --gpus-per-node instead of --gpus-per-task"
        raise UserError(f"trainer.devices is {wanted}, but this machine has {count} of kind {accelerator}: give {have}")
    return int(wanted) if wanted.isdecimal() else wanted


def indices(devices: str) -> list[int]:
    return [int(index) for index in devices.split(",") if index]


def device_count(devices: int | str) -> int:
    """Devices of a node; `auto` counts as one."""
    return (
        len(indices(devices)) if isinstance(devices, str) and "," in devices else int(str(devices).replace("auto", "1"))
    )


def fitting_seconds(longest: float, memory: float, peak: Callable[[int, int], float]) -> float:
    """Seconds of audio for which a training step takes at most `memory`, and at least one utterance.

    A step's memory is linear in the number of utterances of one length, so two measurements determine it. Attention may
    grow with the square of the length, so the longest utterances, which are measured, need the most per second.

    Args:
        longest: seconds of the longest utterance.
        memory: bytes.
        peak: (utterances, samples of each) -> peak memory of a step in bytes.
    """
    samples, few = math.ceil(longest * SAMPLE_RATE), max(1, round(MEASURED / longest))
    first, second = peak(few, samples), peak(2 * few, samples)
    each = max(1.0, (second - first) / few)
    return max(1, int(few + (memory - first) / each)) * longest


def _check_launcher(trainer: TrainerConfig, devices: int | str) -> None:
    """A launcher has decided the number of processes; Lightning's own complaint comes late and names no key."""
    here = device_count(devices)
    if (by := started()) is None:
        if trainer.num_nodes > 1:
            raise UserError(
                f"trainer.num_nodes is {trainer.num_nodes}, but neither torchrun nor srun has started this process: "
                "use one of them on every node"
            )
        if launcher() is None and (world := os.environ.get("WORLD_SIZE", "")).isdecimal() and "RANK" in os.environ:
            require(
                int(world) <= 1,
                "WORLD_SIZE",
                int(world),
                "unset together with RANK, or set by torchrun: start the run with torchrun",
            )
        return
    wanted = {
        "trainer.devices": (here, by.processes, by.option),
        "trainer.num_nodes": (trainer.num_nodes, by.nodes, by.nodes_option),
    }
    for key, (asked, present, option) in wanted.items():
        if asked != present:
            raise UserError(
                f"{key} is {asked}, but {by.launcher} started {present}: add {key}={present}, or start "
                f"it with {by.command} {option}={asked}"
            )
