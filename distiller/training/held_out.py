"""The loss on held-out audio: its table, and the best student so far."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from distiller.audio.batch import Batch
from distiller.audio.skipped import SkippedLog
from distiller.common.files import write_csv
from distiller.training.module import TrainingModule
from distiller.training.processes import log_values


class HeldOut:
    """Validates during training. Its rows are part of a checkpoint, so a resumed run continues its table."""

    def __init__(
        self,
        batches: Sequence[Callable[[], Batch]],
        table: Path,
        keep_best: Callable[[TrainingModule], None],
        skipped: SkippedLog | None = None,
    ) -> None:
        self.batches, self.table, self.keep_best, self.skipped = batches, table, keep_best, skipped
        self.rows: list[dict[str, float]] = []

    def run(self, fabric: Fabric, module: TrainingModule) -> None:
        """Add a row for the current step; every rank takes part."""
        if not self.batches:
            return
        with module.unsharded():
            row = {"step": module.progress.step} | self.losses(fabric, module)
            best = min((earlier["loss"] for earlier in self.rows), default=float("inf"))
            if fabric.is_global_zero and row["loss"] < best:
                self.keep_best(module)
        self.rows.append(row)
        if fabric.is_global_zero:
            write_csv(self.table, self.rows)
        log_values(fabric, row, "held_out/")

    @torch.no_grad()
    def losses(self, fabric: Fabric, module: TrainingModule) -> dict[str, float]:
        """The loss and its terms over the held-out set, as if it were one global batch; ranks share the work."""
        module.eval()
        sums, weights = Counter[str](), dict[str, tuple[str, float]]()
        for make in self.batches[fabric.global_rank :: fabric.world_size]:
            batch = make().to(fabric.device)
            if self.skipped is not None:
                self.skipped.record(batch.skipped)
            with fabric.autocast():  # not the wrapped module: ranks have unequal numbers of batches
                terms = module.losses(batch)
            sums.update({"utterance": len(batch.lengths), "frame": int(module.frame_lengths(batch).sum())})
            sums.update({term.name: float(term.total) for term in terms})
            weights |= {term.name: (term.unit, term.weight) for term in terms}
        module.train()
        if fabric.world_size > 1:  # whole dictionaries, since a rank without batches does not know the terms
            shares: list[Any] = [None] * fabric.world_size
            torch.distributed.all_gather_object(shares, (sums, weights))
            sums = Counter[str]()
            for other_sums, other_weights in shares:
                sums.update(other_sums)
                weights |= other_weights
        values = {name: sums[name] / sums[unit] for name, (unit, _) in weights.items()}
        loss = sum(weights[name][1] * value for name, value in values.items())
        return {"loss": loss} | {f"term/{name}": value for name, value in values.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = state["rows"]
