"""Worker processes that decode: as many as have room for their batches in shared memory; one line if they are lost.

Workers pass their batches through shared memory, of which a container has 64 MB by default.
"""

import os
import re
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import queues
from pathlib import Path
from typing import Any, NoReturn

from upstream.config import SAMPLE_RATE
from upstream.errors import UserError

SHARED_MEMORY = Path("/dev/shm")  # where Linux has it
PREFETCH = 4  # batches that a worker has ready
HELD = 2  # steps whose batches the main process holds: the one in use, and the next
KEPT_FREE = 0.1  # share of the shared memory
TIMEOUT = 600.0  # seconds for one batch, far more than any takes
FULL = 100  # exit code of a worker that finds shared memory full
LARGER = "give a container more with docker run --shm-size=2g, or use {key}=0, which needs none"


def free_shared_memory() -> int | None:
    """Free bytes of shared memory; None where it has no separate limit."""
    try:
        status = os.statvfs(SHARED_MEMORY)
    except (OSError, AttributeError):  # macOS, Windows
        return None
    return status.f_bavail * status.f_frsize


def batch_bytes(seconds: float) -> int:
    """Bytes of a batch of that much audio, padding included."""
    return int(seconds * SAMPLE_RATE) * 4


def loader_options(
    workers: int, batch_bytes: int, processes: int, key: str, tell: bool = True, step: int = 1, pin: bool = False
) -> dict[str, Any]:
    """Settings of a DataLoader with at most `workers`, and no more than have room for their batches in shared memory.

    At least the batches of the next two steps are prefetched.

    Args:
        batch_bytes: of the largest batch.
        processes: processes on this machine that each have such a loader.
        key: the option or key that the number of workers comes from.
        tell: print a line if there are fewer workers than that.
        step: batches that are used together.
        pin: copy them to pinned memory, which a GPU reads while it computes.
    """
    free = free_shared_memory()
    fitting = max(workers * PREFETCH, HELD * step)  # batches of the workers
    if free is not None and workers:
        held = HELD if pin else HELD * step  # a pinned copy is not in shared memory
        fitting = min(fitting, int(free * (1 - KEPT_FREE) / processes / batch_bytes) - held)
    number = max(0, min(workers, fitting))
    if number < workers and tell:
        print(
            f"{key} was lowered from {workers} to {number}: {SHARED_MEMORY} has {_megabytes(free or 0)} free, and each "
            f"worker needs at least {_megabytes(batch_bytes * processes)} of it; {LARGER.format(key=key)}"
        )
    if not number:
        return {"num_workers": 0, "pin_memory": pin}
    return {
        "num_workers": number, "prefetch_factor": fitting // number, "pin_memory": pin, "timeout": TIMEOUT,
        "worker_init_fn": _end_when_full,
    }  # fmt: skip


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


def _end_when_full(worker: int) -> None:
    """In a worker: exit if a batch cannot be passed on. Python would lose it, and the main process wait forever."""

    def end(error: Exception, batch: object) -> NoReturn:
        os._exit(FULL)

    queues.Queue._on_queue_feeder_error = staticmethod(end)  # type: ignore[attr-defined]  # a hook for such cases


@contextmanager
def lost_workers(key: str) -> Iterator[None]:
    """Explains the loss of a worker of the DataLoader that the block reads from.

    Args:
        key: the option or key that the number of workers comes from.

    Raises:
        UserError: a worker was killed, found shared memory full, or did not answer.
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        # other errors are "caught in DataLoader worker process"
        text = f"{error} {error.__cause__} {_end_while_handing_over(error)}"
        again = "run the same command again to continue"
        if re.search(rf"DataLoader worker.*(exit code {FULL}\b|Bus error)", text):
            remedy = f"shared memory ({SHARED_MEMORY}) is full: {LARGER.format(key=key)}; {again}"
        elif "DataLoader timed out" in text:
            remedy = f"no worker process delivered a batch for {TIMEOUT / 60:.0f} minutes: check the disk, then {again}"
        elif "DataLoader worker (pid" in text:
            remedy = f"a worker process was killed, perhaps because memory ran out; {again}, with fewer {key}"
        else:
            raise
        raise UserError(remedy) from error


def _end_while_handing_over(error: Exception) -> str:
    """DataLoader's message about a worker whose connection broke; '' for any other error."""
    try:  # DataLoader's signal handler raises at whatever line is running when the worker ends: any of these
        frames = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
        reading = "pin memory thread" in str(error) or "_try_get_data" in frames  # not from workers' own errors
        if not reading or not isinstance(error, (ConnectionError, FileNotFoundError, EOFError)):
            return ""
        time.sleep(1.0)
    except RuntimeError as end:
        return str(end)
    return "DataLoader worker (pid unknown) ended"
