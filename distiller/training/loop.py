"""The training loop. Lightning Fabric places it on devices; each step of it is written out here, in its order."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from distiller.audio.batch import Batch, StepBatch
from distiller.audio.dataset import AudioDataset
from distiller.audio.sampler import StepBatchSampler, step_batches_per_epoch
from distiller.audio.skipped import SkippedLog
from distiller.common.files import StepTable
from distiller.common.process import rank
from distiller.common.workers import batch_bytes, loader_options, lost_workers
from distiller.training.checkpoints import Checkpoint, newest_checkpoint, save_checkpoint
from distiller.training.config import TrainerConfig
from distiller.training.devices import device_count
from distiller.training.held_out import HeldOut
from distiller.training.layer_options import checkpoint_layers, compile_layers
from distiller.training.module import Progress, TrainingModule, schedule, step_seed
from distiller.training.processes import log_values, open_fabric, process_errors
from distiller.training.progress_lines import StepBar
from upstream.config import SAMPLE_RATE
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError

DIVERGED = 100.0  # times the first loss; a loss that learns never gets there
LOUD = 1e3  # samples beyond this are no audio
SMALL_LOSS = 0.1  # a smaller first loss counts as this: one with a cosine in it may start at 0 by chance


@dataclass
class Training:
    """A module, the audio that it is trained on, and the folder below which everything is written.

    Args:
        sampler: makes a process's endless stream of step batches from its (rank, world size).
        held_out: batches to validate on, each made when called.
        keep_best: called with the module when the held-out loss is the lowest so far.
    """

    module: TrainingModule
    dataset: AudioDataset
    sampler: Callable[[int, int], StepBatchSampler]
    config: TrainerConfig
    output: Path
    workers: int = 0
    held_out: Sequence[Callable[[], Batch]] = ()
    keep_best: Callable[[TrainingModule], None] = lambda module: None
    skipped: SkippedLog | None = None

    def fit(self) -> bool:
        """Train for the steps or epochs of the configuration, from the newest checkpoint on.

        Returns:
            Whether this process continues after training (the first rank).

        Raises:
            UserError: training diverged, too much audio had to be skipped, or another process of the run is gone.
        """
        module, config = self.module, self.config
        stream = self.sampler(rank(), device_count(config.devices) * config.num_nodes)
        module.steps = config.steps or (config.epochs or 0) * step_batches_per_epoch(stream)
        newest = newest_checkpoint(self.output / "checkpoints")
        if newest is not None and newest.step >= module.steps:  # interrupted between training and what follows it
            module.load_state_dict(newest.content["module"])
            module.progress.load_state_dict(newest.content["progress"])
            return rank() == 0
        arrange_layers(module, config)
        fabric = open_fabric(module, config, self.output)
        with process_errors(fabric), lost_workers("corpus.workers"):
            fabric.launch()
            module.move_frozen(fabric.device)
            self._steps(fabric, stream, newest)
        module.cpu()
        return fabric.is_global_zero

    def _steps(self, fabric: Fabric, stream: StepBatchSampler, newest: Checkpoint | None) -> None:
        """Every step with its row, its validation and its checkpoint."""
        module, config, progress = self.module, self.config, self.module.progress
        network = fabric.setup_module(module.train())
        adamw = module.optimizer()
        optimizer: Any = fabric.setup_optimizers(adamw)
        scheduler = LambdaLR(adamw, schedule(module.optimizer_config, module.steps))
        validation = HeldOut(self.held_out, self.output / "held_out.csv", self.keep_best, self.skipped)
        state = {"module": network, "optimizer": optimizer, "scheduler": scheduler, "progress": progress}
        state |= {"held_out": validation} | ({} if self.skipped is None else {"skipped": self.skipped})
        if newest is not None:
            fabric.load(newest.path, state, weights_only=True)
            epoch, index = progress.position or (0, -1)
            stream.start(epoch, index + 1)
        size = batch_bytes(stream.batch_seconds * stream.accumulate)
        here = device_count(config.devices)
        options = loader_options(self.workers, size, here, "corpus.workers", fabric.is_global_zero)
        pinned = fabric.device.type == "cuda"
        loader = DataLoader(self.dataset, sampler=stream, batch_size=None, pin_memory=pinned, **options)
        table = StepTable(self.output / "metrics.csv", progress.step + 1) if fabric.is_global_zero else None
        with StepBar(progress.step, module.steps, visible=fabric.is_global_zero) as bar:
            for batch in islice(loader, module.steps - progress.step):
                if self.skipped is not None:
                    self.skipped.add(batch.skipped, batch.utterances)
                for micro_batch in batch.batches:
                    micro_batch.require_audio()
                row = optimiser_step(fabric, network, optimizer, scheduler, batch.to(fabric.device, non_blocking=True))
                if table is not None:
                    table.append(row)
                log_values(fabric, row)
                bar.update(row)
                ended = progress.step == module.steps
                if ended or progress.step % config.validate_every == 0:
                    validation.run(fabric, module)
                if ended or progress.step % config.checkpoint_every == 0:
                    save_checkpoint(fabric, self.output / "checkpoints", progress.step, state)
        fabric.logger.finalize("success")
        if module.shards is not None:
            module.shards.gather()


def optimiser_step(
    fabric: Fabric, network: Any, optimizer: Any, scheduler: LambdaLR, batch: StepBatch
) -> dict[str, float]:
    """One step on all micro-batches of `batch`; returns its row of metrics.csv.

    The loss does not depend on how the global batch is split: each term is a sum over utterances or frames, divided by
    their number over all ranks and micro-batches. The random numbers follow from (seed, step, rank).
    """
    started, module = time.perf_counter(), network.module
    progress: Progress = module.progress
    torch.manual_seed(step_seed(module.seed, progress.step, fabric.global_rank))
    counts = global_counts(fabric, module, batch.batches)
    optimizer.zero_grad()
    penalty, logged = module.penalty()
    sums: dict[str, Tensor] = {}
    for index, micro_batch in enumerate(batch.batches):
        last = index + 1 == len(batch.batches)
        with fabric.no_backward_sync(network, enabled=not last):  # gradients travel between ranks once a step
            loss, terms = network(micro_batch, counts)
            # gradients are averaged over ranks: the loss is their sum, the penalty the same on each
            fabric.backward(loss * fabric.world_size + (penalty if last else 0.0))
        for name, value in {"loss": loss.detach(), **terms}.items():
            sums[name] = sums.get(name, 0.0) + value
    values = over_ranks(fabric, sums)
    check_finite(fabric, module, "loss", values["loss"], batch)
    norm = clip_gradients(fabric, module, optimizer)
    check_finite(fabric, module, "gradient norm", norm, batch)
    optimizer.step()
    scheduler.step()
    if module.average is not None:
        module.average.update_parameters(module.student)
    progress.step += 1
    progress.position = (batch.epoch, batch.index)
    audio = sum(int(micro_batch.lengths.sum()) for micro_batch in batch.batches) / SAMPLE_RATE * fabric.world_size
    row = {"step": progress.step, "lr": scheduler.get_last_lr()[0], "gradient_norm": norm} | values | logged
    return row | {"audio_seconds": audio, "step_seconds": time.perf_counter() - started}


def global_counts(fabric: Fabric, module: TrainingModule, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Utterances and valid frames of the global batch: all ranks, all micro-batches."""
    dtype = torch.float64 if fabric.device.type != "mps" else torch.float32
    sizes = [[len(batch.lengths), int(module.frame_lengths(batch).sum())] for batch in batches]
    counts = torch.tensor(sizes, dtype=dtype).sum(dim=0).to(fabric.device)
    if fabric.world_size > 1:
        counts = fabric.strategy.all_reduce(counts, reduce_op="sum")
    return {"utterance": counts[0].float(), "frame": counts[1].float()}


def over_ranks(fabric: Fabric, sums: dict[str, Tensor]) -> dict[str, float]:
    """Each value summed over the ranks, as a number; the loss keeps its name, its terms begin with "term/"."""
    values = torch.stack([value.float() for value in sums.values()])
    if fabric.world_size > 1:
        values = fabric.strategy.all_reduce(values, reduce_op="sum")
    names = [name if name == "loss" else f"term/{name}" for name in sums]
    return dict(zip(names, values.tolist(), strict=True))


def clip_gradients(fabric: Fabric, module: TrainingModule, optimizer: Any) -> float:
    """The norm of all gradients, before they are clipped to optimizer.clip."""
    fabric.strategy.precision.unscale_gradients(optimizer)
    bound = module.optimizer_config.clip or float("inf")
    norm = nn.utils.clip_grad_norm_([p for p in module.parameters() if p.grad is not None], bound)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def check_finite(fabric: Fabric, module: TrainingModule, what: str, value: float, batch: StepBatch) -> None:
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
    at = f"at step {progress.step + 1} (files {listed})"
    kept = "; the last good checkpoint is kept" if progress.step else ""
    if not math.isfinite(value) and (cause := cause_of_overflow(fabric, module, batch)):
        raise UserError(f"{cause[0]} is not finite {at}{kept}: {cause[1]}")
    remedy = "try a lower optimizer.lr or optimizer.clip in a new --output"
    if not (progress.step or diverged):
        remedy = "no step has been taken, so optimizer.lr is not the cause; try another teacher or other audio"
    raise UserError(f"the {what} is {value:.4g} {at}{kept}: {remedy}")


@torch.no_grad()
def cause_of_overflow(fabric: Fabric, module: TrainingModule, batch: StepBatch) -> tuple[str, str] | None:
    """What is not finite before there is a loss, and the remedy; None if only a high learning rate explains it.

    Every rank takes part, and all find the same.
    """
    found: dict[str, Tensor] = {"loud": torch.zeros((), device=fabric.device)}
    with fabric.autocast():
        for micro_batch in batch.batches:
            found["loud"] += (micro_batch.waveforms.abs() > LOUD).any()
            for name, finite in module.finite_outputs(micro_batch).items():
                found[name] = found.get(name, 0.0) + (~finite).float()
    failed = [name.removeprefix("term/") for name, count in over_ranks(fabric, found).items() if count]
    network = next((name for name in failed if name != "loud"), None)
    what = f"the {network}'s output" if network else "the loss"
    precision, first = fabric.strategy.precision.precision, module.progress.step == 0
    if "loud" in failed:
        return what, f"some of the audio, which should be within -1 to 1, is beyond {LOUD:g}; leave such files out"
    if precision == "16-mixed" or (precision != "32-true" and (first or network == "teacher")):
        return what, f"trainer.precision is {precision}, in which large values overflow; try 32-true in a new --output"
    if network == "teacher":
        return what, "its weights are too large for 32-bit numbers; try another teacher"
    return None  # at a first step its initial weights, later the learning rate


def arrange_layers(module: TrainingModule, config: TrainerConfig) -> None:
    """Compile and checkpoint the Transformer layers as the recipe says; a gated student's stay as they are."""
    if config.compile:
        for encoder in (module.student, getattr(module, "teacher", None)):
            if isinstance(encoder, SpeechEncoder):
                compile_layers(encoder.layers)
    if config.checkpoint_activations and isinstance(module.student, SpeechEncoder):
        checkpoint_layers(module.student.layers)
