"""The training loop: every step with its metrics row, validation and checkpoint.

Lightning Fabric handles the devices.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from distiller.audio.batch import Batch, step_batches_of
from distiller.audio.dataset import AudioDataset
from distiller.audio.sampler import StepBatchSampler, step_batches_per_epoch
from distiller.audio.skipped import SkippedLog
from distiller.common.files import StepTable
from distiller.common.process import rank
from distiller.common.progress import StepBar
from distiller.common.workers import batch_bytes, loader_options, lost_workers
from distiller.training.checkpoints import Checkpoint, newest_checkpoint, save_checkpoint
from distiller.training.config import TrainerConfig
from distiller.training.devices import device_count
from distiller.training.held_out import HeldOut
from distiller.training.layer_options import checkpoint_layers, compile_layers, plain_layers
from distiller.training.module import TrainingModule, schedule
from distiller.training.processes import log_values, open_fabric, process_errors
from distiller.training.step import LATE, TakenStep, optimiser_step
from upstream.encoder import SpeechEncoder

HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # the type that autocast computes in
# Seconds of audio per device above which `trainer.compile: auto` compiles. On an H200 (bf16-mixed) compiling took 20 s
# and, with the fused AdamW, saved 13 ms per 460 s of audio: it pays off after 708,000 s, or somewhat more.
COMPILING_PAYS = 1e6


@dataclass
class Training:
    """A module, its training audio, and the folder that everything is written to.

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
        fabric = open_fabric(module, config, self.output)
        with process_errors(fabric), lost_workers("corpus.workers"):
            fabric.launch()
            module.move_frozen(fabric.device, HALF.get(config.precision))
            arrange_layers(module, config, fabric.device, module.steps * stream.batch_seconds * stream.accumulate)
            self._steps(fabric, stream, newest)
        module.cpu()
        for encoder in encoders(module):
            plain_layers(encoder.layers)
        return fabric.is_global_zero

    def _steps(self, fabric: Fabric, stream: StepBatchSampler, newest: Checkpoint | None) -> None:
        """Every step with its metrics row, validation and checkpoint."""
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
        size = batch_bytes(stream.batch_seconds) * (1 if self.dataset.augment is None else 2)  # teacher's, student's
        here, pin = device_count(config.devices), fabric.device.type == "cuda"
        told = fabric.is_global_zero
        options = loader_options(self.workers, size, here, "corpus.workers", told, stream.accumulate, pin)
        loader = DataLoader(self.dataset, sampler=stream, batch_size=None, **options)
        late, taken = fabric.device.type in LATE, deque[TakenStep]()
        table = StepTable(self.output / "metrics.csv", progress.step + 1) if fabric.is_global_zero else None
        with StepBar(progress.step, module.steps, visible=fabric.is_global_zero) as bar:
            for batch in islice(step_batches_of(loader, stream.accumulate), module.steps - progress.step):
                if self.skipped is not None:
                    self.skipped.add(batch.skipped, batch.utterances)
                for micro_batch in batch.batches:
                    micro_batch.require_audio()
                taken.append(optimiser_step(fabric, network, optimizer, scheduler, batch))
                ended = progress.step == module.steps
                validate = ended or progress.step % config.validate_every == 0
                save = ended or progress.step % config.checkpoint_every == 0
                # a GPU computes this step while the previous one's row is written; a checkpoint waits for the check
                while len(taken) > (late and not validate and not save):
                    row = taken.popleft().row(fabric, module)
                    if table is not None:
                        table.append(row)
                    log_values(fabric, row)
                    bar.update(row)
                if validate:
                    validation.run(fabric, module)
                if save:
                    save_checkpoint(fabric, self.output / "checkpoints", progress.step, state)
        fabric.logger.finalize("success")
        if module.shards is not None:
            module.shards.gather()


def arrange_layers(module: TrainingModule, config: TrainerConfig, device: torch.device, seconds: float) -> None:
    """Compile and checkpoint the Transformer layers as the recipe says; a gated student's are left unchanged.

    Args:
        seconds: of training audio per device in the whole run, so that a resumed run makes the same choice.
    """
    auto = config.compile == "auto"
    if (auto and device.type == "cuda" and seconds > COMPILING_PAYS) or config.compile is True:
        for encoder in encoders(module):
            compile_layers(encoder.layers, fall_back=auto)
    if config.checkpoint_activations:
        for encoder in encoders(module):
            if any(parameter.requires_grad for parameter in encoder.parameters()):
                checkpoint_layers(encoder.layers)


def encoders(module: TrainingModule) -> list[SpeechEncoder]:
    """The networks of a module to which this applies: not a student with gates."""
    return [network for network in module.networks() if isinstance(network, SpeechEncoder)]
