"""As many workers as shared memory holds the batches of; one line when a worker or a batch is lost."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import resource_sharer

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from distiller.common import workers
from distiller.common.workers import loader_options, lost_workers
from upstream.errors import UserError

MEGABYTE = 2**20


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Sets the free bytes of shared memory."""
    return lambda size: monkeypatch.setattr(workers, "free_shared_memory", lambda: size)


@pytest.mark.parametrize(
    ("size", "processes", "number", "prefetch"),
    [
        (None, 1, 8, 4),  # no limit
        (1000, 1, 8, 4),
        (280, 1, 8, 2),  # fewer batches ready, as many workers
        (64, 1, 3, 1),  # Docker's default: 5 batches of 10 MB, of which the main process holds two
        (64, 2, 0, 0),
        (20, 1, 0, 0),
        (0, 1, 0, 0),
    ],
)
def test_workers_that_shared_memory_has_room_for(
    size: int | None, processes: int, number: int, prefetch: int, free, capsys: pytest.CaptureFixture[str]
) -> None:
    free(size and size * MEGABYTE)
    options = loader_options(8, 10 * MEGABYTE, processes, "corpus.workers")
    said = capsys.readouterr().out
    assert (options["num_workers"], options.get("prefetch_factor", 0)) == (number, prefetch)
    assert said.count("\n") == (number < 8)
    if number < 8:
        assert said.startswith(f"corpus.workers was lowered from 8 to {number}: /dev/shm has ")
        assert "--shm-size" in said


@pytest.mark.parametrize(
    ("size", "pin", "number", "prefetch"),
    [
        (None, False, 2, 16),  # the 32 batches of two steps are read ahead
        (400, False, 2, 2),  # 36 batches, of which the main process holds 32
        (400, True, 2, 16),  # it holds two, and copies of the others
        (300, False, 0, 0),
        (40, True, 1, 1),
    ],
)
def test_the_batches_of_a_step_are_held_together(size: int | None, pin: bool, number: int, prefetch: int, free) -> None:
    free(size and size * MEGABYTE)
    options = loader_options(2, 10 * MEGABYTE, 1, "corpus.workers", step=16, pin=pin)
    assert (options["num_workers"], options.get("prefetch_factor", 0)) == (number, prefetch)
    assert options["pin_memory"] == pin


class Noise(Dataset[torch.Tensor]):
    """Batches of which the third does something else first."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 2:
            self.act()
        return torch.zeros(100_000)


def read(act: Callable[[], object]) -> None:
    options = loader_options(1, 400_000, 1, "corpus.workers")
    with lost_workers("corpus.workers"):
        for _ in DataLoader(Noise(act), batch_size=None, **options):
            pass


class Unsendable(torch.Tensor):
    def __reduce_ex__(self, protocol: object) -> None:  # type: ignore[override]
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "a worker process was killed, perhaps because memory ran out"),
        (lambda: os.kill(os.getpid(), signal.SIGBUS), r"shared memory \(/dev/shm\) is full: .*--shm-size"),
        (lambda: time.sleep(60), "no worker process delivered a batch"),
    ],
    ids=["SIGKILL", "SIGBUS", "hangs"],
)
def test_a_lost_worker_is_one_line(act: Callable, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "TIMEOUT", 1.0)
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)  # also the wait for a worker's end
    with pytest.raises(UserError, match=said):
        read(act)


@pytest.mark.parametrize("killed", [True, False])
def test_a_worker_that_ends_while_it_hands_a_batch_over_is_one_line(
    killed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill() -> None:
        for worker in multiprocessing.active_children():
            os.kill(worker.pid or 0, signal.SIGKILL)

    def detach(self: resource_sharer.DupFd) -> int:
        if killed:  # the signal that tells of its end comes later than the end of the connection
            threading.Timer(0.2, kill).start()
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(resource_sharer.DupFd, "detach", detach)
    with pytest.raises(UserError, match="a worker process was killed, perhaps because memory ran out") as caught:
        read(lambda: None)
    time.sleep(0.5)  # nothing comes after the line
    assert isinstance(caught.value.__cause__, ConnectionResetError)


def test_the_news_of_a_workers_end_may_come_while_the_error_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    monkeypatch.setattr(workers.traceback, "extract_tb", interrupted)
    with (
        pytest.raises(UserError, match="a worker process was killed, perhaps because memory ran out"),
        lost_workers("corpus.workers"),
    ):
        raise EOFError


def test_a_batch_that_cannot_be_handed_over_ends_the_loader(capfd: pytest.CaptureFixture[str]) -> None:
    """Python prints the error of a worker's queue and loses the batch; the main process would wait for it."""

    class Full(Noise):
        def __getitem__(self, index: int) -> torch.Tensor:
            return super().__getitem__(index).as_subclass(Unsendable)

    def run() -> None:
        options = loader_options(1, 400_000, 1, "corpus.workers")
        with lost_workers("corpus.workers"):
            list(DataLoader(Full(lambda: None), batch_size=None, **options))

    with pytest.raises(UserError, match=r"shared memory \(/dev/shm\) is full: .* corpus.workers=0, which needs none"):
        run()
    assert "Traceback" not in capfd.readouterr().err


def test_an_error_in_a_worker_stays_what_it_is() -> None:
    def fail() -> None:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        read(fail)


TOLD = """
import time
from torch.utils.data import DataLoader
from distiller.common.command import run_command
from distiller.common.workers import loader_options

def command():
    options = loader_options(2, 100, 1, "corpus.workers")
    for _ in DataLoader(range(100_000_000), batch_size=None, **options):
        print("reading", flush=True)
        time.sleep(60)

raise SystemExit(run_command(command))
"""


def test_a_signal_to_all_processes_is_one_line() -> None:
    """As `timeout` and SLURM send it. The workers end first, which DataLoader would raise as an error where it ends."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", TOLD], stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        os.killpg(process.pid, signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (143, "interrupted; run the same command to continue\n")
