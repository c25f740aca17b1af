"""This process among those of a run."""

import os


def rank() -> int:
    """This process's number among those of the run, 0 for the one that speaks and writes.

    Known before a process group exists: from torchrun, Lightning's own launcher, or srun. A shell inside a SLURM job,
    which SLURM names bash or interactive, hands its task's number to all that it starts: there it says nothing.
    """
    if "RANK" in os.environ:
        return int(os.environ["RANK"])
    shell = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    if "SLURM_PROCID" in os.environ and "LOCAL_RANK" not in os.environ and not shell:
        return int(os.environ["SLURM_PROCID"])
    return int(os.environ.get("LOCAL_RANK", 0)) or int(os.environ.get("NODE_RANK", 0))


def is_child() -> bool:
    """Whether Lightning started this process, beside the one that the user did; torchrun's and srun's are not its."""
    return "RANK" not in os.environ and int(os.environ.get("LOCAL_RANK", 0)) > 0
