"""What happens around a step: held-out loss, checkpoints, tables, the progress bar."""

import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, TQDMProgressBar

from distiller.audio.batch import Batch, StepBatch
from distiller.audio.skipped import SkippedLog
from distiller.common.files import StepTable, remove, writing
from distiller.training.module import TrainingModule

KEPT = 2  # checkpoints


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its final name, syncs it, renames it.

    Lightning's own writer moves a temporary file, across file systems if need be, where a kill can leave half of it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with writing(Path(path)) as temporary:
            try:
                with temporary.open("wb") as file:  # Python's, because torch's own does not say why a disk refuses
                    torch.save(checkpoint, file)
            except RuntimeError as error:  # torch, about the file that the refusal cut short
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)


class Checkpoints(Callback):
    """Saves at optimiser-step boundaries and keeps the last two."""

    def __init__(self, directory: Path, every: int) -> None:
        self.directory, self.every = directory, every

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        step = trainer.global_step
        if step % self.every and step != pl_module.steps:
            return
        trainer.save_checkpoint(self.directory / f"step-{step:08d}.ckpt")
        if trainer.is_global_zero:
            for path in sorted(self.directory.glob("step-*.ckpt"))[:-KEPT]:
                remove(path)


class HeldOut(Callback):
    """The loss on held-out audio every so many steps, before that step's checkpoint; keeps the best student.

    It is its own short loop because Lightning's forgets a validation that an interruption fell upon.
    """

    def __init__(
        self,
        batches: list[Callable[[], Batch]],
        every: int,
        table: Path,
        keep_best: Callable[[TrainingModule], None],
        skipped: SkippedLog | None = None,
    ) -> None:
        self.batches, self.every, self.table, self.keep_best = batches, every, table, keep_best
        self.skipped = skipped
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        step = trainer.global_step
        if not self.batches or (step % self.every and step != pl_module.steps):
            return
        with pl_module.whole():
            row = {"step": step} | self.evaluate(trainer, pl_module)
            best = min((earlier["loss"] for earlier in self.rows), default=float("inf"))
            if trainer.is_global_zero and row["loss"] < best:
                self.keep_best(pl_module)
        self.rows.append(row)
        if trainer.is_global_zero:
            with writing(self.table) as temporary, temporary.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(row))
                writer.writeheader()
                writer.writerows(self.rows)
        if trainer.logger is not None:
            trainer.logger.log_metrics({f"held_out/{key}": value for key, value in row.items() if key != "step"}, step)

    @torch.no_grad()
    def evaluate(self, trainer: L.Trainer, module: TrainingModule) -> dict[str, float]:
        """The loss and its terms over the held-out set, as if it were one global batch; ranks share the work."""
        module.eval()
        sums, weights = Counter[str](), dict[str, tuple[str, float]]()
        for make in self.batches[module.global_rank :: trainer.world_size]:
            batch = make().to(module.device)
            if self.skipped is not None:
                self.skipped.record(batch.skipped)
            with trainer.precision_plugin.forward_context():
                terms = module.losses(batch)
            sums.update({"utterance": len(batch.lengths), "frame": int(module.frame_lengths(batch).sum())})
            sums.update({term.name: float(term.total) for term in terms})
            weights |= {term.name: (term.unit, term.weight) for term in terms}
        module.train()
        if trainer.world_size > 1:  # whole dictionaries, since a rank without a batch knows no terms
            shares: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(shares, (sums, weights))
            sums = Counter[str]()
            for theirs, known in shares:
                sums.update(theirs)
                weights |= known
        values = {name: sums[name] / sums[unit] for name, (unit, _) in weights.items()}
        return {"loss": sum(weights[name][1] * value for name, value in values.items())} | values

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]


class StepRows(Callback):
    """metrics.csv and TensorBoard: one row per optimiser step; counts the files that had to be set aside."""

    def __init__(self, path: Path, skipped: SkippedLog | None) -> None:
        self.path, self.skipped = path, skipped
        self.table: StepTable | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self.table = StepTable(self.path, first_step=trainer.global_step + 1)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: StepBatch, batch_idx: int
    ) -> None:
        if self.skipped is not None:
            self.skipped.add(batch)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        if self.table is not None:
            self.table.append(pl_module.row)
        if trainer.logger is not None:
            values = {key: value for key, value in pl_module.row.items() if key != "step"}
            trainer.logger.log_metrics(values, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.skipped is None else self.skipped.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.skipped is not None:
            self.skipped.load_state_dict(state_dict)


class StepBar(TQDMProgressBar):
    """Lightning's bar with the loss and the audio seconds trained on per second."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=5)
        self.rate = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        super().on_train_epoch_start(trainer, *_)
        self.train_progress_bar.set_description("training")  # the stream's epochs are not Lightning's

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        rate = pl_module.row["audio_seconds"] / max(pl_module.row["step_seconds"], 1e-9)
        self.rate = rate if not self.rate else 0.9 * self.rate + 0.1 * rate
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if self._train_progress_bar is not None:
            self._train_progress_bar.close()  # so that what is said of the exception has a line of its own

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        assert isinstance(pl_module, TrainingModule)
        if not pl_module.row:
            return {}
        return {"loss": f"{pl_module.row['loss']:.4g}", "audio s/s": f"{self.rate:.0f}"}
