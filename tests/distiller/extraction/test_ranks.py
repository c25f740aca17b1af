"""Processes that wait for each other, and what one says when another is gone."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from distiller.common.process import LAUNCHERS
from distiller.extraction.ranks import Ranks, joined
from upstream.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import os
from distiller.extraction.ranks import joined
from upstream.errors import UserError

with joined() as ranks:
    ranks.wait()
    if ranks.rank == 1:
        os._exit(1)
    try:
        ranks.wait()
    except UserError as error:
        print(error)
"""


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in {name for names in LAUNCHERS.values() for name in names}:
        monkeypatch.delenv(variable, raising=False)


def test_one_process_waits_for_nobody() -> None:
    with joined() as ranks:
        assert ranks == Ranks(rank=0, size=1)
        ranks.wait()
        assert ranks.device("cuda") == "cuda"


def test_processes_of_srun_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHERS["SLURM"]:
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    with joined() as ranks:
        assert ranks.size == 1
    monkeypatch.setenv("SLURM_NTASKS", "4")
    with pytest.raises(UserError, match="start them with torchrun"), joined():
        pass


def test_each_process_of_a_machine_has_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    ranks = [Ranks(rank=number, size=6, local=number % 3, on_machine=3) for number in range(6)]
    assert [rank.device("cuda") for rank in ranks] == ["cuda:0", "cuda:1", "cuda:0"] * 2
    assert ranks[0].device("cpu") == "cpu"


@pytest.mark.slow
def test_a_lost_process_is_one_line() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x", "PYTHONPATH": str(ROOT)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, **shared, "RANK": str(number), "LOCAL_RANK": str(number)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    out = processes[0].communicate(timeout=300)[0]
    processes[1].wait(timeout=300)
    assert "another process of this command (of 2) has ended; run the same command to continue" in out
