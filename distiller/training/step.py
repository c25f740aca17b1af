"""One optimiser step: its computation, its checks, and its row of metrics.csv.

On a GPU the host never waits for a number within a step: a step's numbers are copied and checked while the next one
runs. Until then, the device itself skips an update whose loss or gradient is not finite.
"""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR

from distiller.audio.batch import Batch, StepBatch
from distiller.training.module import Progress, TrainingModule, step_seed
from upstream.config import SAMPLE_RATE
from upstream.errors import UserError

LATE = {"cuda"}  # devices whose numbers are read a step later; all others compute while the host waits anyway
DIVERGED = 100.0  # times the first loss; a loss that decreases normally never gets there
LOUD = 1e3  # samples beyond this are not audio
SMALL_LOSS = 0.1  # a smaller first loss counts as this: one with a cosine in it may start at 0 by chance


class Clock:
    """Seconds of device time until `stop`."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.started = self.stopped = self._now()

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True, blocking=True)  # blocking: waits without using a core
        event.record()
        return event

    def stop(self) -> None:
        self.stopped = self._now()

    def seconds(self) -> float:
        """Waits until the device has reached the stop."""
        if not self.cuda:
            return self.stopped - self.started
        self.stopped.synchronize()
        return self.started.elapsed_time(self.stopped) / 1000


class Numbers:
    """Numbers by name, some of them still on a device: a single non-blocking copy fetches them all."""

    def __init__(self, values: Mapping[str, float | Tensor]) -> None:
        self.values = values
        tensors = torch.stack([value.detach() for value in values.values() if isinstance(value, Tensor)])
        self.copied = tensors.to("cpu", non_blocking=tensors.device.type in LATE)  # torch: into pinned memory then

    def read(self) -> dict[str, float]:
        """The numbers; the device must have reached the copy."""
        copied = iter(self.copied.tolist())
        return {name: next(copied) if isinstance(value, Tensor) else value for name, value in self.values.items()}


class TakenStep:
    """An optimiser step that the device may still be working on.

    Args:
        number: 1, 2, ...
        numbers: with "gradient_norm" and "loss", as they are before the update.
        batch: of this step; released once the numbers have been checked.
    """

    def __init__(self, number: int, numbers: Numbers, batch: StepBatch, clock: Clock) -> None:
        self.number, self.numbers, self.clock = number, numbers, clock
        self.batch: StepBatch | None = batch
        self.lr = self.audio_seconds = math.nan

    def check(self, fabric: Fabric, module: TrainingModule) -> None:
        """Raises: UserError: the loss or the gradient is not finite, or the loss has diverged."""
        if self.batch is not None:
            values = self.numbers.read()
            for what, name in (("loss", "loss"), ("gradient norm", "gradient_norm")):
                check_finite(fabric, module, what, values[name], self.batch, self.number)
            self.batch = None

    def row(self, fabric: Fabric, module: TrainingModule) -> dict[str, float]:
        """The step's row of metrics.csv, once the device is done. Every rank takes part. Raises: as `check`."""
        seconds = self.clock.seconds()
        self.check(fabric, module)
        row = {"step": self.number, "lr": self.lr} | self.numbers.read()
        return row | {"audio_seconds": self.audio_seconds, "step_seconds": seconds}


def optimiser_step(fabric: Fabric, network: Any, optimizer: Any, scheduler: LambdaLR, batch: StepBatch) -> TakenStep:
    """One step on all micro-batches of `batch`.

    The loss does not depend on how the global batch is split: each term is a sum over utterances or frames, divided by
    their number over all ranks and micro-batches. The random numbers follow from (seed, step, rank).

    Raises:
        UserError: as `TakenStep.check`, before the update; on a GPU that is left to `TakenStep.row`.
    """
    clock, module = Clock(fabric.device), network.module
    progress: Progress = module.progress
    torch.manual_seed(step_seed(module.seed, progress.step, fabric.global_rank))
    counts = global_counts(fabric, module, batch.batches)
    optimizer.zero_grad()
    penalty, logged = module.penalty()
    sums: dict[str, Tensor] = {}
    for index, micro_batch in enumerate(batch.batches):
        last = index + 1 == len(batch.batches)
        with fabric.no_backward_sync(network, enabled=not last):  # gradients travel between ranks once a step
            loss, terms = network(micro_batch.to(fabric.device, non_blocking=True), counts)
            # gradients are averaged over ranks: the loss is their sum, the penalty the same on each
            fabric.backward(loss * fabric.world_size + (penalty if last else 0.0))
        for name, value in {"loss": loss.detach(), **terms}.items():
            sums[name] = sums.get(name, 0.0) + value
    leave_frozen(optimizer, progress.step)
    values, norm = over_ranks(fabric, sums), clip_gradients(fabric, module, optimizer)
    taken = TakenStep(progress.step + 1, Numbers({"gradient_norm": norm} | values | logged), batch, clock)
    if fabric.device.type in LATE:  # a fused optimizer skips the update if this is 1
        finite = torch.stack([values["loss"], norm]).isfinite().all()
        optimizer.optimizer.found_inf = finite.logical_not().float()
    else:
        taken.check(fabric, module)
    optimizer.step()
    scheduler.step()
    module.update_average()
    progress.step += 1
    progress.position = (batch.epoch, batch.index)
    taken.lr = float(scheduler.get_last_lr()[0])
    taken.audio_seconds = sum(int(part.lengths.sum()) for part in batch.batches) / SAMPLE_RATE * fabric.world_size
    clock.stop()
    return taken


def global_counts(fabric: Fabric, module: TrainingModule, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Utterances and valid frames of the global batch: all ranks, all micro-batches."""
    dtype = torch.float64 if fabric.device.type != "mps" else torch.float32
    sizes = [[len(batch.lengths), int(module.frame_lengths(batch).sum())] for batch in batches]
    counts = torch.tensor(sizes, dtype=dtype).sum(dim=0).to(fabric.device, non_blocking=True)
    counts = summed(fabric, counts)
    return {"utterance": counts[0].float(), "frame": counts[1].float()}


def over_ranks(fabric: Fabric, sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each value summed over the ranks; the loss keeps its name, its terms begin with "term/"."""
    values = summed(fabric, torch.stack([value.float() for value in sums.values()]))
    names = [name if name == "loss" else f"term/{name}" for name in sums]
    return dict(zip(names, values, strict=True))


def summed(fabric: Fabric, values: Tensor) -> Tensor:
    """The sum over all ranks, in place; not by Fabric's `all_reduce`, where every host waits for all devices."""
    if fabric.world_size > 1:
        torch.distributed.all_reduce(values)
    return values


def leave_frozen(optimizer: Any, step: int) -> None:
    """Drop the gradients of groups whose `first_step` is yet to come, so that the optimiser skips their parameters."""
    for group in optimizer.param_groups:
        if step < group.get("first_step", 0):
            for parameter in group["params"]:
                parameter.grad = None


def clip_gradients(fabric: Fabric, module: TrainingModule, optimizer: Any) -> Tensor:
    """The norm of all gradients, before they are clipped to optimizer.clip."""
    fabric.strategy.precision.unscale_gradients(optimizer.optimizer)  # the one that the scaler steps, unwrapped
    bound = module.optimizer_config.clip or float("inf")
    norm = nn.utils.clip_grad_norm_([p for p in module.parameters() if p.grad is not None], bound)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def check_finite(fabric: Fabric, module: TrainingModule, what: str, value: float, batch: StepBatch, step: int) -> None:
    """Raises: UserError: the value is not finite, or a loss has diverged; the checkpoints before this step stay."""
    progress, diverged = module.progress, False
    if what == "loss":
        progress.first_loss = abs(value) if progress.first_loss is None else progress.first_loss
        diverged = abs(value) > DIVERGED * max(progress.first_loss, SMALL_LOSS)
    scaled = what != "loss" and getattr(fabric.strategy.precision, "scaler", None) is not None
    if (math.isfinite(value) or scaled) and not diverged:  # a gradient scaler skips infinite gradients itself
        return
    files = [path for micro_batch in batch.batches for path in micro_batch.paths]
    listed = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    at = f"at step {step} (files {listed})"
    kept = "; the last good checkpoint is kept" if step > 1 else ""
    if not math.isfinite(value) and (cause := cause_of_overflow(fabric, module, batch, first=step == 1)):
        raise UserError(f"{cause[0]} is not finite {at}{kept}: {cause[1]}")
    remedy = "try a lower optimizer.lr or optimizer.clip in a new --output"
    if not (step > 1 or diverged):
        remedy = "no step has been taken, so optimizer.lr is not the cause; try another teacher or other audio"
    raise UserError(f"the {what} is {value:.4g} {at}{kept}: {remedy}")


@torch.no_grad()
def cause_of_overflow(fabric: Fabric, module: TrainingModule, batch: StepBatch, first: bool) -> tuple[str, str] | None:
    """What is not finite before the loss, and the remedy; None if only a high learning rate explains it.

    Every rank takes part, and all get the same result.
    """
    found: dict[str, Tensor] = {"loud": torch.zeros((), device=fabric.device)}
    with fabric.autocast():
        for micro_batch in (each.to(fabric.device) for each in batch.batches):
            found["loud"] += (micro_batch.waveforms.abs() > LOUD).any()
            for name, finite in module.finite_outputs(micro_batch).items():
                found[name] = found.get(name, 0.0) + (~finite).float()
    failed = [name.removeprefix("term/") for name, count in over_ranks(fabric, found).items() if float(count)]
    network = next((name for name in failed if name != "loud"), None)
    what = f"the {network}'s output" if network else "the loss"
    precision, of_teacher = fabric.strategy.precision.precision, (network or "").startswith("teacher")
    if "loud" in failed:
        return what, f"some of the audio, which should be within -1 to 1, is beyond {LOUD:g}; leave such files out"
    if precision == "16-mixed" or (precision != "32-true" and (first or of_teacher)):
        return what, f"trainer.precision is {precision}, in which large values overflow; try 32-true in a new --output"
    if of_teacher:
        return what, "its weights are too large for 32-bit numbers; try another teacher"
    return None  # at a first step its initial weights, later the learning rate
