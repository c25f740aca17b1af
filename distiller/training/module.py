"""The loop around any loss: one window of micro-batches is one optimiser step, whatever the devices (Lightning)."""

import math
import time
from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from distiller.audio.batch import Batch, StepBatch
from distiller.objectives.base import Term
from distiller.students.gates import GatedEncoder
from distiller.training.config import OptimizerConfig
from distiller.training.sharding import Shards
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError

DIVERGED = 100.0  # times the first loss: nothing that learns gets there
SMALL_LOSS = 0.1  # a first loss below counts as this: with a cosine in it, it may begin at 0 by chance


class TrainingModule(L.LightningModule):
    """Trains `self.student` on the terms that `losses` makes of a batch.

    The loss of a step does not depend on how its global batch is split: every term is a sum over utterances or frames,
    divided by their number over all ranks and micro-batches. The position in the stream of windows is part of the
    checkpoint, and the random numbers of a step follow from (seed, step, rank), so that a resumed run is the same run.
    """

    def __init__(
        self, student: SpeechEncoder | GatedEncoder, optimizer: OptimizerConfig, seed: int, ema: float = 0.0
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.student = student
        self.average: AveragedModel | None = None
        if ema:
            self.average = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(ema)).requires_grad_(False)
        self.optimizer_config, self.seed = optimizer, seed
        self.steps = 0  # optimiser steps of the whole run; `fit` sets it
        self.position: tuple[int, int] | None = None  # (epoch, index) of the last window trained on
        self.first_loss: float | None = None
        self.elapsed = 0.0  # seconds of training in the processes before this one
        self.row: dict[str, float] = {}  # what the last step has to say, for the logs
        self._shards: Shards | None = None  # with trainer.strategy=fsdp
        self._start = time.perf_counter()

    @abstractmethod
    def losses(self, batch: Batch) -> list[Term]:
        """The terms of one micro-batch, their totals summed over its units."""

    @abstractmethod
    def frame_lengths(self, batch: Batch) -> Tensor:
        """(batch,) valid frames of each utterance."""

    def penalty(self) -> tuple[Tensor | float, dict[str, float]]:
        """What the loss of a whole step gains, whatever its batches are, and what there is to log of it."""
        return 0.0, {}

    def special_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups with settings of their own; all other parameters have the recipe's."""
        return []

    def seconds(self) -> float:
        """Wall-clock seconds of training, earlier processes included."""
        return self.elapsed + time.perf_counter() - self._start

    def kept_student(self) -> SpeechEncoder:
        """What is saved: the averaged student when there is one."""
        kept = self.student if self.average is None else self.average.module
        assert isinstance(kept, SpeechEncoder)
        return kept

    def whole(self) -> AbstractContextManager[None]:
        """Inside it every rank has all of what is trained; every rank must enter it."""
        return nullcontext() if self._shards is None else self._shards.whole()

    # --- one step

    def training_step(self, window: StepBatch, _: int) -> None:
        started = time.perf_counter()
        step = self.global_step
        torch.manual_seed(step_seed(self.seed, step, self.global_rank))
        counts = self.global_counts(window.batches)
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizer, LightningOptimizer)
        assert isinstance(scheduler, LambdaLR)
        optimizer.zero_grad()
        penalty, logged = self.penalty()
        sums: dict[str, Tensor] = {}
        for index, batch in enumerate(window.batches):
            terms = self.losses(batch)
            loss = self.total(terms, counts)
            last = index + 1 == len(window.batches)
            # DDP averages over ranks: the loss is their sum, the penalty the same on each
            with self._gradient_sync(last):
                self.manual_backward(loss * self.trainer.world_size + (penalty if last else 0.0))
            for name, value in [("loss", loss), *((term.name, term.total / counts[term.unit]) for term in terms)]:
                sums[name] = sums.get(name, 0.0) + value.detach()
        values = self._over_ranks(sums)
        self._check(values["loss"], step, window)
        norm = self._clip(optimizer)
        self._check(norm, step, window, "gradient norm")
        optimizer.step()
        scheduler.step()
        if self.average is not None:
            self.average.update_parameters(self.student)
        self.position = (window.epoch, window.index)
        audio = sum(int(batch.lengths.sum()) for batch in window.batches) / 16_000 * self.trainer.world_size
        took = time.perf_counter() - started
        self.row = {"step": step + 1, "lr": scheduler.get_last_lr()[0], "gradient_norm": norm} | values
        self.row |= logged | {"audio_seconds": audio, "step_seconds": took}

    def total(self, terms: list[Term], counts: dict[str, Tensor]) -> Tensor:
        """Sum of the weighted terms, each divided by the global batch's number of its units."""
        return torch.stack([term.weight * term.total / counts[term.unit] for term in terms]).sum()

    def global_counts(self, batches: list[Batch]) -> dict[str, Tensor]:
        """Utterances and valid frames of the global batch: all ranks, all micro-batches."""
        counts = torch.zeros(2, dtype=torch.float64 if self.device.type != "mps" else torch.float32, device=self.device)
        for batch in batches:
            counts[0] += len(batch.lengths)
            counts[1] += self.frame_lengths(batch).sum()
        if self.trainer.world_size > 1:
            counts = self.trainer.strategy.reduce(counts, reduce_op="sum")
        return {"utterance": counts[0].float(), "frame": counts[1].float()}

    def _gradient_sync(self, last: bool) -> Any:
        """Gradients travel between ranks once a step, with the last micro-batch."""
        strategy = self.trainer.strategy
        return nullcontext() if last or not isinstance(strategy, ParallelStrategy) else strategy.block_backward_sync()

    def _over_ranks(self, sums: dict[str, Tensor]) -> dict[str, float]:
        values = torch.stack([value.float() for value in sums.values()])
        if self.trainer.world_size > 1:
            values = self.trainer.strategy.reduce(values, reduce_op="sum")
        return dict(zip(sums, values.tolist(), strict=True))

    def _clip(self, optimizer: Any) -> float:
        """The norm of all gradients, before they are clipped to optimizer.clip."""
        if (scaler := getattr(self.trainer.precision_plugin, "scaler", None)) is not None:
            scaler.unscale_(optimizer.optimizer)
        bound = self.optimizer_config.clip or float("inf")
        norm = nn.utils.clip_grad_norm_([p for p in self.parameters() if p.grad is not None], bound)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def _check(self, value: float, step: int, window: StepBatch, what: str = "loss") -> None:
        """Raises UserError when training went wrong; the checkpoints before this step stay."""
        if what == "loss" and self.first_loss is None:
            self.first_loss = abs(value)
        scaled = what != "loss" and getattr(self.trainer.precision_plugin, "scaler", None) is not None
        diverged = what == "loss" and abs(value) > DIVERGED * max(self.first_loss or 0.0, SMALL_LOSS)
        if (math.isfinite(value) or scaled) and not diverged:  # a gradient scaler skips infinite gradients itself
            return
        files = [path for batch in window.batches for path in batch.paths]
        shown = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
        raise UserError(
            f"the {what} is {value:.4g} at step {step + 1} (files {shown}); the last good checkpoint is kept: try "
            "a lower optimizer.lr or optimizer.clip in a new --output"
        )

    # --- Lightning's hooks

    def configure_model(self) -> None:
        """Splits what is trained over the ranks, where Lightning has laid a mesh over them (trainer.strategy=fsdp)."""
        if self._device_mesh is not None and self._shards is None:
            self._shards = Shards(self, self._device_mesh["data_parallel"])

    def on_train_end(self) -> None:
        if self._shards is not None:
            self._shards.gather()

    def configure_optimizers(self) -> Any:
        """AdamW without decay on biases and norms; warm-up, then the recipe's decay to 0."""
        config, special = self.optimizer_config, self.special_groups()
        apart = {id(p) for group in special for p in group["params"]}
        trained = [p for p in self.parameters() if p.requires_grad and id(p) not in apart]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW([*groups, *special], lr=config.lr, betas=config.betas, eps=config.eps)
        return [optimizer], [LambdaLR(optimizer, schedule(config, self.steps))]

    def transfer_batch_to_device(self, batch: StepBatch, device: torch.device, dataloader_idx: int) -> StepBatch:
        return batch.to(device, non_blocking=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["position"] = self.position
        checkpoint["first_loss"] = self.first_loss
        checkpoint["elapsed"] = self.seconds()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.position = tuple(checkpoint["position"])
        self.first_loss = checkpoint["first_loss"]
        self.elapsed = checkpoint["elapsed"]


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


def resume_path(checkpoints: Path) -> Path | None:
    """The newest checkpoint that loads."""
    for path in sorted(checkpoints.glob("step-*.ckpt"), reverse=True):
        try:
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception:  # torch raises several kinds for a damaged file; any of them means: take the one before
            continue
        return path
    return None
