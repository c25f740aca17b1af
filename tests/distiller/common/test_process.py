"""Which process of a run this is."""

import pytest

from distiller.common.process import rank as rank_of


@pytest.mark.parametrize(
    ("launcher", "rank"),
    [
        ("", 0),
        ("RANK=5 LOCAL_RANK=1 SLURM_PROCID=0 SLURM_JOB_NAME=batch", 5),  # torchrun in a SLURM job
        ("SLURM_PROCID=9 SLURM_LOCALID=1 SLURM_JOB_NAME=batch", 9),  # srun
        ("LOCAL_RANK=1 NODE_RANK=0 SLURM_PROCID=0 SLURM_JOB_NAME=bash", 1),  # Lightning's child in a shell of SLURM's
        ("SLURM_PROCID=3 SLURM_JOB_NAME=interactive", 0),  # the process that starts that child
        ("LOCAL_RANK=0 NODE_RANK=2", 2),
    ],
)
def test_the_rank_is_that_of_the_innermost_launcher(launcher: str, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_NAME", raising=False)
    for setting in launcher.split():
        monkeypatch.setenv(*setting.split("="))
    assert rank_of() == rank
