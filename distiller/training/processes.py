"""The processes of a run: how they share the work, and what happens when one of them is gone."""

import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from lightning.fabric.plugins.precision.amp import MixedPrecision
from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.fabric.strategies.model_parallel import ModelParallelStrategy
from lightning.fabric.strategies.strategy import Strategy

from distiller.common.files import disk_error
from distiller.training.config import TrainerConfig
from distiller.training.devices import device_count
from distiller.training.layer_options import Shards
from distiller.training.module import TrainingModule
from upstream.errors import UserError

TIMEOUT = timedelta(minutes=10)  # longer than anything one rank does while the others wait
LOST = r"gloo|nccl|connection (closed|reset)|broken pipe|timed out|timeout"  # in the error of a collective


class FullPrecisionInputs(MixedPrecision):
    """Mixed precision that leaves waveforms and counts in fp32: sums over them overflow or round in half precision."""

    def convert_input(self, data: Any) -> Any:
        return data

    def unscale_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Also for a fused optimizer, which Lightning refuses; the step of torch's scaler knows that it is done."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)


def open_fabric(module: TrainingModule, config: TrainerConfig, output: Path) -> Fabric:
    """Devices, processes, precision and the TensorBoard log of a training."""
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)  # repeats the recipe at every start
    warnings.filterwarnings("ignore", "The `srun` command is available")  # true on every login node
    precision: dict[str, Any] = {"precision": "32-true"}
    if config.precision != "32-true":
        device = config.accelerator if config.accelerator in ("cpu", "mps") else "cuda"
        precision = {"plugins": FullPrecisionInputs(config.precision, device)}
    return Fabric(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=strategy(module, config),
        # A signal while the writer holds its queue lock can lose a wake-up: closing then waits for the next flush.
        loggers=TensorBoardLogger(output, name="tensorboard", version="", flush_secs=10),
        **precision,
    )


def strategy(module: TrainingModule, config: TrainerConfig) -> Strategy | str:
    """How the devices share the work; a rank that waits for another gives up after TIMEOUT."""
    ranks = device_count(config.devices) * config.num_nodes
    if config.strategy == "fsdp":

        def shard(network: TrainingModule, mesh: Any) -> TrainingModule:
            network.shards = Shards(network, mesh["data_parallel"])
            return network

        # Fabric's FSDPStrategy wraps the older API and needs CUDA; this one takes our splitting, on any device
        return ModelParallelStrategy(
            shard,  # type: ignore[arg-type]  # declared for nn.Module
            data_parallel_size=ranks,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            timeout=TIMEOUT,
        )
    if ranks == 1 and config.strategy == "auto":
        return "auto"
    return DDPStrategy(find_unused_parameters=config.strategy == "ddp_find_unused_parameters_true", timeout=TIMEOUT)


def log_values(fabric: Fabric, row: dict[str, float], prefix: str = "") -> None:
    """Log a row of a table, except its column `step`, at that step."""
    try:
        fabric.log_dict({prefix + key: value for key, value in row.items() if key != "step"}, int(row["step"]))
    except ValueError as error:  # the logger hides the disk error
        if isinstance(error.__cause__, OSError):
            raise disk_error(Path(str(fabric.logger.root_dir)) / "tensorboard", error.__cause__) from error
        raise


@contextmanager
def process_errors(fabric: Fabric) -> Iterator[None]:
    """Wraps training: if it ends early, so do the processes started for it; a lost process or full memory is a
    UserError.

    Lightning's observer of child processes must forget them first: it would react to their end with `kill -9` of this
    process. The thread that writes TensorBoard's file does not report a full disk; its next row raises the error.
    """
    hook = threading.excepthook
    threading.excepthook = lambda failure: None if issubclass(failure.exc_type, OSError) else hook(failure)
    try:
        yield
    except BaseException as error:
        for thread in threading.enumerate():
            if isinstance(thread, _ChildProcessObserver):
                for child in thread._child_processes:
                    child.terminate()
                thread._child_processes.clear()
        sentence = of_surroundings(error, fabric)
        if sentence is None:
            raise
        raise UserError(sentence) from error
    finally:
        threading.excepthook = hook


def of_surroundings(error: BaseException, fabric: Fabric) -> str | None:
    """What a library's error says about the machine or the other processes; None if it is about neither."""
    text = str(error)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text:
        return (
            f"the memory of {fabric.device} is full: halve corpus.batch_seconds and double trainer.accumulate in a new "
            "--output, which needs about half the memory and trains the same"
        )
    if not isinstance(error, RuntimeError):  # DistBackendError is one; gloo raises bare ones
        return None
    if "/dev/shm" in text:  # NCCL's buffers
        return "shared memory (/dev/shm) is too small for NCCL; give a container more with docker run --shm-size=2g"
    if fabric.world_size > 1 and re.search(LOST, text, re.IGNORECASE):
        return (
            f"another process of this run (of {fabric.world_size}) exited or did not respond for "
            f"{TIMEOUT.seconds // 60} minutes; run the same command again to continue from the last checkpoint"
        )
    return None
