"""This process's place among those of a run, as told by its launcher."""

import os
from typing import NamedTuple

# The variables that each launcher sets for every process it starts; the first is the process's number. If only some of
# them are set, they are leftovers from somewhere else and are ignored.
LAUNCHERS = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"),
    "Lightning": ("LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"),
    "SLURM": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NODEID"),
}
TEXTS = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR")  # all others are numbers


class Started(NamedTuple):
    """What a launcher has started, and the command and options to start other numbers."""

    launcher: str
    command: str
    processes: int  # on each node
    nodes: int
    option: str
    nodes_option: str


def launcher() -> str | None:
    """What started this process along with others: torchrun, SLURM, or Lightning in another process.

    A shell inside a SLURM job, which SLURM names bash or interactive, passes its task's number to everything it starts.
    """
    for name, variables in LAUNCHERS.items():
        shell = name == "SLURM" and os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
        if not shell and all(_is_set(variable) for variable in variables):
            return name
    return None


def _is_set(variable: str) -> bool:
    value = os.environ.get(variable, "")
    return bool(value) if variable in TEXTS else value.isdecimal()


def rank() -> int:
    """This process's number among those of the run; process 0 prints and writes.

    Known before a process group exists.
    """
    name = launcher()
    return 0 if name is None else int(os.environ[LAUNCHERS[name][0]])


def is_child() -> bool:
    """Whether Lightning started this process in addition to the user's; those of torchrun and srun do not count."""
    return launcher() == "Lightning" and rank() > 0


def started() -> Started | None:
    """What torchrun or srun has started; None without either."""
    name = launcher()
    if name == "torchrun":
        here, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        return Started(name, name, here, world // max(here, 1), "--nproc-per-node", "--nnodes")
    if name == "SLURM":
        nodes = max(1, int(os.environ["SLURM_NNODES"])) if _is_set("SLURM_NNODES") else 1
        here = int(os.environ["SLURM_NTASKS"]) // nodes
        return Started(name, "srun", here, nodes, "--ntasks-per-node", "--nodes")
    return None


def settle_launcher() -> None:
    """Keep in the environment only this process's launcher's variables, for the libraries that read them."""
    name = launcher()
    mine = LAUNCHERS[name] if name else ()
    others = {variable for variables in LAUNCHERS.values() for variable in variables} - set(mine)
    for variable in others - ({"MASTER_ADDR", "MASTER_PORT"} if name else set()):
        os.environ.pop(variable, None)
    if name == "SLURM" and (all_of := started()):  # only set by --ntasks-per-node, and for the job rather than the step
        os.environ["SLURM_NTASKS_PER_NODE"] = str(all_of.processes)
