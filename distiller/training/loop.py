"""Hands a training module to Lightning, from the newest checkpoint on if there is one."""

import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ContextDecorator, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch.utils.data import DataLoader

from distiller.audio.batch import Batch
from distiller.audio.dataset import AudioDataset, lost_workers
from distiller.audio.sampler import StepBatchSampler, step_batches_per_epoch
from distiller.audio.skipped import SkippedLog
from distiller.training.callbacks import AtomicCheckpointIO, Checkpoints, HeldOut, StepBar, StepRows
from distiller.training.config import TrainerConfig
from distiller.training.devices import device_count
from distiller.training.layer_options import checkpoint_layers, compile_layers
from distiller.training.module import TrainingModule, resume_path
from distiller.training.sharding import Sharded
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError

TIMEOUT = timedelta(minutes=10)  # longer than anything that one rank does while the others wait
LOST = r"gloo|nccl|connection (closed|reset)|broken pipe|timed out|timeout"  # in what a collective raises


class _quiet(ContextDecorator):
    """Hushes what Lightning says at every start, and what is not so here (our stream does resume)."""

    def __enter__(self) -> None:
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        for message in (
            ".*dataloader is not resumable.*",
            ".*does not have many workers.*",
            ".*`isinstance.treespec.*",
        ):
            warnings.filterwarnings("ignore", message)
        self._logger = logging.getLogger("lightning.pytorch")
        self._level = self._logger.level
        self._logger.setLevel(logging.ERROR)
        self._hook, threading.excepthook = threading.excepthook, self._thread_failed

    def _thread_failed(self, failure: threading.ExceptHookArgs) -> None:
        if not issubclass(failure.exc_type, OSError):  # TensorBoard's writer raises it at our next row too
            self._hook(failure)

    def __exit__(self, *error: Any) -> None:
        threading.excepthook = self._hook
        self._logger.setLevel(self._level)
        self._warnings.__exit__(None, None, None)


@_quiet()
def fit(
    module: TrainingModule,
    dataset: AudioDataset,
    sampler: Callable[[int, int], StepBatchSampler],
    config: TrainerConfig,
    output: Path,
    *,
    workers: int = 0,
    held_out: list[Callable[[], Batch]] | None = None,
    keep_best: Callable[[TrainingModule], None] = lambda module: None,
    skipped: SkippedLog | None = None,
) -> bool:
    """Train `module` for the steps or epochs of `config`; everything it writes goes below `output`.

    Args:
        sampler: makes this process's endless stream of windows from its (rank, world size).
        held_out: batches to validate on, each made when called.
        keep_best: called with the module when the held-out loss is the lowest so far.

    Returns:
        Whether this process is the one that goes on (the first rank).
    """
    arrange_layers(module, config)
    newest = resume_path(output / "checkpoints")
    trainer = L.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=strategy(config),
        precision=config.precision,
        max_epochs=1,  # the sampler's stream is endless and knows its own epochs
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        # A signal in the midst of its queue can cost a wake-up: its end is then put off until the next flush.
        logger=TensorBoardLogger(output, name="tensorboard", version="", flush_secs=10),
        plugins=[AtomicCheckpointIO()],
        callbacks=[
            StepBar(),
            StepRows(output / "metrics.csv", skipped),
            HeldOut(held_out or [], config.validate_every, output / "held_out.csv", keep_best, skipped),
            Checkpoints(output / "checkpoints", config.checkpoint_every),
        ],
    )
    # Whoever started the run handles SIGTERM: Lightning would wait in a collective for ranks that are in another.
    trainer._signal_connector.register_signal_handlers = lambda: None
    stream = sampler(trainer.global_rank, trainer.world_size)
    module.steps = config.steps or (config.epochs or 0) * step_batches_per_epoch(stream)
    trainer.limit_train_batches = module.steps
    if newest is not None:
        state = torch.load(newest, map_location="cpu", weights_only=True, mmap=True)
        if state["global_step"] >= module.steps:  # all that was missing is what follows training
            module.load_state_dict(state["state_dict"])
            module.on_load_checkpoint(state)
            return trainer.is_global_zero
        epoch, index = state["position"]
        stream.start(epoch, index + 1)
    loader = DataLoader(
        dataset,
        sampler=stream,
        batch_size=None,
        num_workers=workers,
        pin_memory=trainer.strategy.root_device.type == "cuda",
        prefetch_factor=4 if workers else None,
    )
    with ended_children(), lost_ranks(trainer), lost_workers("corpus.workers"):
        trainer.fit(module, loader, ckpt_path=newest, weights_only=True)
    return trainer.is_global_zero


def arrange_layers(module: TrainingModule, config: TrainerConfig) -> None:
    """What the recipe asks of the Transformer layers; a gated student's stay as they are."""
    if config.compile:
        for encoder in (module.student, getattr(module, "teacher", None)):
            if isinstance(encoder, SpeechEncoder):
                compile_layers(encoder.layers)
    if config.checkpoint_activations and isinstance(module.student, SpeechEncoder):
        checkpoint_layers(module.student.layers)


def strategy(config: TrainerConfig) -> Strategy | str:
    """How the devices share the work; one that waits for another gives up after TIMEOUT."""
    ranks = device_count(config.devices) * config.num_nodes
    if config.strategy == "fsdp":
        return Sharded(ranks, TIMEOUT)
    if ranks == 1 and config.strategy == "auto":
        return "auto"
    return DDPStrategy(find_unused_parameters=config.strategy == "ddp_find_unused_parameters_true", timeout=TIMEOUT)


@contextmanager
def ended_children() -> Iterator[None]:
    """The processes that Lightning has started from this one are told to end when this one does before its time.

    Its observer forgets them then: it would answer with a `kill -9` of this process if one had not begun to run yet.
    """
    try:
        yield
    except BaseException:
        for thread in threading.enumerate():
            if isinstance(thread, _ChildProcessObserver):
                for child in thread._child_processes:
                    child.terminate()
                thread._child_processes.clear()
        raise


@contextmanager
def lost_ranks(trainer: L.Trainer) -> Iterator[None]:
    """What torch says when another process of the run is gone, in the words of who started it."""
    try:
        yield
    except RuntimeError as error:  # DistBackendError is one; gloo raises bare ones
        if trainer.world_size == 1 or not re.search(LOST, str(error), re.IGNORECASE):
            raise
        raise UserError(
            f"another of the {trainer.world_size} processes of this run has gone, or has not answered for "
            f"{TIMEOUT.seconds // 60} minutes; run the same command again to continue from the last checkpoint"
        ) from error
