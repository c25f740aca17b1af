"""What of run_downstream.py's command line can be told to be wrong before any work."""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from downstream_recipes.adaptation.s3prl_output import read_checkpoint
from downstream_recipes.tasks.tasks import TASKS
from upstream.errors import UserError

SECTIONS = ("runner", "downstream_expert")  # of every recipe
LISTED_SPLITS = {
    "asr": "datarc",
    "ctc": "corpus",
}  # tasks whose splits are lists of folders in their recipes, and where
SPLITS = ("train", "dev", "test")  # of the others


def check_device(device: str) -> None:
    """Raises: UserError: none of s3prl's, or not there."""
    import torch

    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise UserError(f"--device {device}: cpu, cuda or cuda:NUMBER is needed")
    count = torch.cuda.device_count()
    if device != "cpu" and int(device.partition(":")[2] or 0) >= count:
        raise UserError(f"--device {device}: torch sees {count} GPUs here; --device cpu works without")


def check_folder(folder: Path) -> None:
    """Raises: UserError: it cannot be made, or nothing written in it."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        fault = "cannot be written" if there.is_dir() else "is a file"
        raise UserError(f"-p {folder}: no folder to write an experiment in: {there} {fault}")


def read_experiment(path: Path) -> dict[str, Any]:
    """The checkpoint that s3prl takes for `-e path`: that file, or the newest of a folder.

    Raises:
        UserError: there is none, or it is none of s3prl's.
    """
    if not path.exists():
        raise UserError(f"-e {path}: no such checkpoint or experiment folder")
    if path.is_dir():
        steps = {
            int(found[1]): file for file in path.iterdir() if (found := re.match(r"states-(\d+)\.ckpt$", file.name))
        }
        if not steps:
            raise UserError(f"-e {path}: no states-STEP.ckpt in this folder")
        path = steps[max(steps)]
    try:
        states = read_checkpoint(path)
    except Exception:  # whatever torch.load stumbles over
        states = None
    if not isinstance(states, dict) or not {"Args", "Config"} <= set(states):
        raise UserError(f"-e {path}: no checkpoint of run_downstream's, or cut short")
    return states


def check_split(mode: str, split: str, downstream: str, recipe: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """
    Args:
        downstream: s3prl's name of a task; of one that is not SUPERB's nothing is known.
        overrides: further flags, where s3prl's -o may add a split.

    Raises:
        UserError: -t is nothing that can be evaluated, or no file to infer from.
    """
    if mode == "inference" and not Path(split).is_file():
        raise UserError(f"-t {split}: no such file; -m inference needs the path of a wav")
    ours = any(task.downstream == downstream for task in TASKS.values())
    if mode != "evaluate" or not ours or any(f".{split}=" in text for text in overrides):
        return
    listed = recipe["downstream_expert"].get(LISTED_SPLITS.get(downstream)) or {}
    found = [name for name, value in listed.items() if isinstance(value, list) and not name.endswith("_speakers")]
    if split not in (found or SPLITS):
        raise UserError(f"-t {split}: no split of {downstream}; it has {', '.join(found or SPLITS)}")


def check_sections(recipe: Path, configuration: Mapping[str, Any]) -> None:
    """Raises: UserError: a section that every task needs is missing."""
    for section in SECTIONS:
        if not isinstance(configuration.get(section), Mapping):
            raise UserError(f"-c {recipe}: no section {section}: in it; every recipe needs {' and '.join(SECTIONS)}")


def check_upstream(name: str | None, checkpoint: str | None) -> None:
    """Raises: UserError: neither ours nor s3prl's, or one of s3prl's that needs a checkpoint."""
    from s3prl import hub

    known = [entry for entry in dir(hub) if not entry.startswith("_") and callable(getattr(hub, entry))]
    if name is None:
        return
    if name not in known:
        nearest = ", ".join(difflib.get_close_matches(name, known, 3, 0))
        raise UserError(f"-u {name}: no such upstream; the nearest names are {nearest}")
    if checkpoint is None and name.endswith(("_local", "_url", "_custom")) and name != "baseline_local":
        raise UserError(f"-u {name}: needs a checkpoint of yours, -k {'URL' if name.endswith('_url') else 'PATH'}")
    if checkpoint is not None and name.endswith("_local") and not Path(checkpoint).exists():
        raise UserError(f"-u {name} -k {checkpoint}: no such file")


def check_packages(downstream: str) -> None:
    """
    Args:
        downstream: s3prl's name of a task.

    Raises:
        UserError: packages that it needs are not installed.
    """
    needed = {name for task in TASKS.values() if task.downstream == downstream for name in task.packages}
    missing = sorted(name for name in needed if find_spec(name) is None)
    if missing:
        compiler = " (a C compiler builds pesq)" if "pesq" in missing else ""
        raise UserError(
            f"{downstream} needs packages that are not installed: uv pip install {' '.join(missing)}{compiler}"
        )
