"""The processes that share an extraction. torchrun starts them; without it there is one."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from distiller.common.process import launcher, rank
from upstream.errors import UserError

TIMEOUT = timedelta(days=7)  # the others may work for this long after the first is done
POLL = 0.1  # seconds


@dataclass(frozen=True)
class Ranks:
    """This process's number among `size`, and among the `on_machine` that are on this machine."""

    rank: int = 0
    size: int = 1
    local: int = 0
    on_machine: int = 1
    group: Any = None  # torch's, of all of them

    def device(self, name: str) -> str:
        """The device of this process: with several GPUs, each process of a machine uses its own."""
        return f"cuda:{self.local % torch.cuda.device_count()}" if name == "cuda" and self.size > 1 else name

    def wait(self) -> None:
        """Return when every process has reached this point.

        Raises:
            UserError: one of them has ended.
        """
        if self.size == 1:
            return
        try:
            meeting: Any = distributed.barrier(self.group, async_op=True)  # a blocking one cannot be interrupted
            while not meeting.is_completed():
                time.sleep(POLL)
            meeting.wait()
        except RuntimeError as error:
            raise UserError(
                f"another process of this command (of {self.size}) has ended; run the same command to continue"
            ) from error


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that were started together, connected.

    Raises:
        UserError: several were started by something other than torchrun.
    """
    if launcher() != "torchrun":
        if launcher() == "SLURM" and int(os.environ["SLURM_NTASKS"]) > 1:
            raise UserError("srun started several processes; start them with torchrun instead, on one or more nodes")
        yield Ranks()
        return
    size, local, on_machine = (int(os.environ[name]) for name in ("WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    distributed.init_process_group("gloo")
    try:
        yield Ranks(rank(), size, local, on_machine, distributed.new_group(timeout=TIMEOUT))
    finally:
        distributed.destroy_process_group()
