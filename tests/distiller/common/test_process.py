"""Which process of a run this is, and what is left over from another launcher."""

import os

import pytest

from distiller.common.process import LAUNCHERS, is_child, launcher, settle_launcher
from distiller.common.process import rank as rank_of

TORCHRUN = "TORCHELASTIC_RUN_ID=none WORLD_SIZE=8 LOCAL_WORLD_SIZE=4 LOCAL_RANK=1 MASTER_ADDR=node0 MASTER_PORT=29500"
SRUN = "SLURM_NTASKS=16 SLURM_LOCALID=1 SLURM_NODEID=1 SLURM_JOB_NAME=batch"
CHILD = "LOCAL_RANK=1 NODE_RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500"


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch):
    """Sets the variables of a launcher, and no others of any."""

    def launch(settings: str) -> None:
        for variable in ("SLURM_JOB_NAME", "SLURM_NNODES", *(v for names in LAUNCHERS.values() for v in names)):
            monkeypatch.delenv(variable, raising=False)
        for setting in settings.split():
            monkeypatch.setenv(*setting.split("="))

    return launch


@pytest.mark.parametrize(
    ("settings", "rank"),
    [
        ("", 0),
        (f"RANK=5 {TORCHRUN} SLURM_PROCID=0 {SRUN}", 5),  # torchrun in a SLURM job
        (f"SLURM_PROCID=9 {SRUN}", 9),  # srun
        (f"{CHILD} SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_JOB_NAME=bash", 1),
        ("SLURM_PROCID=3 SLURM_NTASKS=4 SLURM_LOCALID=3 SLURM_NODEID=0 SLURM_JOB_NAME=interactive", 0),
    ],
)
def test_the_rank_is_that_of_the_innermost_launcher(settings: str, rank: int, launched) -> None:
    launched(settings)
    assert rank_of() == rank
    assert is_child() == (CHILD in settings)


@pytest.mark.parametrize(
    "settings",
    [
        "RANK=3", "LOCAL_RANK=1", "NODE_RANK=2", "WORLD_SIZE=1", "RANK=0 WORLD_SIZE=1", "RANK=two WORLD_SIZE=", "RANK=",
        "MASTER_ADDR=elsewhere", "TORCHELASTIC_RUN_ID=none", "RANK=1 LOCAL_RANK=1 WORLD_SIZE=4",
        "SLURM_PROCID=3", "SLURM_NTASKS=4 SLURM_JOB_ID=7",
        "SLURM_NTASKS=4 SLURM_PROCID=x SLURM_LOCALID=0 SLURM_NODEID=0",
    ],
)  # fmt: skip
def test_half_a_launcher_counts_for_nothing(settings: str, launched) -> None:
    launched(settings)
    assert (launcher(), rank_of(), is_child()) == (None, 0, False)
    settle_launcher()
    assert not [variable for names in LAUNCHERS.values() for variable in names if variable in os.environ]


def test_a_launcher_keeps_what_is_its_own(launched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "1")  # of the job; the step has more
    launched(f"SLURM_PROCID=9 {SRUN} SLURM_NNODES=2 TORCHELASTIC_RUN_ID=old RANK=0 MASTER_ADDR=node0")
    settle_launcher()
    assert "RANK" not in os.environ
    assert "TORCHELASTIC_RUN_ID" not in os.environ
    kept = {name: os.environ[name] for name in ("SLURM_PROCID", "SLURM_NTASKS_PER_NODE", "MASTER_ADDR")}
    assert kept == {"SLURM_PROCID": "9", "SLURM_NTASKS_PER_NODE": "8", "MASTER_ADDR": "node0"}
