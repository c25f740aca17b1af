"""Checks of run_downstream.py's command line, before any work."""

import os
import re
from collections.abc import Collection, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from downstream_recipes.adaptation import compat
from downstream_recipes.adaptation.checkpoints import is_complete, read_checkpoint, regular_checkpoints
from downstream_recipes.tasks.tasks import TASKS
from upstream.errors import UserError, nearest, no_such, one_of, require


def chosen_device(device: str | None) -> str:
    """s3prl's --device; by default cuda if torch sees a GPU.

    On the CPU, GPUs are hidden from this process: s3prl enters torch.cuda.device(...) whenever it sees one.

    Raises:
        UserError: s3prl does not know it, or torch does not see it.
    """
    import torch

    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    require(re.fullmatch(r"cpu|cuda(:\d+)?", device) is not None, "--device", device, "cpu, cuda or cuda:NUMBER")
    count = torch.cuda.device_count()
    if device != "cpu" and int(device.partition(":")[2] or 0) >= count:
        raise UserError(f"--device is {device}, but torch sees {count} GPUs here; choose --device cpu")
    return device


def read_experiment(path: Path) -> dict[str, Any]:
    """The checkpoint that s3prl loads for `-e path`: that file, or the newest one in a folder.

    Raises:
        UserError: it does not exist, or s3prl did not write it.
    """
    if not path.exists():
        raise UserError(f"-e {path} does not exist")
    if path.is_dir():
        kept = regular_checkpoints(path)
        if not kept:
            raise UserError(f"-e {path} has no checkpoint states-STEP.ckpt")
        path = kept[-1]
    states = read_checkpoint(path) if is_complete(path) else None
    if not isinstance(states, dict) or not {"Args", "Config"} <= set(states):
        raise UserError(f"-e {path} is not a checkpoint of run_downstream.py, or is truncated")
    return states


def check_override(override: str | None, names: Collection[str], recipe: Mapping[str, Any]) -> None:
    """Check -o, in which s3prl ignores unknown names.

    Args:
        names: of s3prl's arguments.

    Raises:
        UserError: a part is not args.NAME=VALUE or config.KEY=VALUE, or KEY looks like a misspelt key of the recipe;
            other new keys are allowed.
    """
    for option in override.split(",,") if override and override.lower() != "none" else ():
        key, *values = (part.strip() for part in option.split("="))
        root, *path = key.split(".")
        known = path and (root == "config" or (root == "args" and path[0] in names and len(path) == 1))
        require(
            len(values) == 1 and bool(known), "-o", option, "args.NAME=VALUE or config.KEY=VALUE; ,, separates several"
        )
        section: Any = recipe
        for name in path if root == "config" else ():
            meant = None if name in section else nearest(name, list(map(str, section)), cutoff=0.85)
            if meant:
                raise UserError(f"-o {key} does not exist; did you mean {key.replace(name, meant)}?")
            section = section.get(name)
            if not isinstance(section, Mapping):
                break


def check_split(arguments: Mapping[str, Any], downstream: str, recipe: Mapping[str, Any]) -> None:
    """
    Args:
        arguments: s3prl's, by name; `override` may add a split.
        downstream: s3prl's name of a task; the splits of tasks outside SUPERB are unknown.

    Raises:
        UserError: -t is not a split of the task or, for -m inference, not a file.
    """
    mode, split = arguments["mode"], arguments.get("evaluate_split") or "test"
    if mode == "inference":
        require(Path(split).is_file(), "-t", split, "an existing wav for -m inference")
    tasks = [task for task in TASKS.values() if task.downstream == downstream]
    if mode != "evaluate" or not tasks or f".{split}=" in (arguments.get("override") or ""):
        return
    section = recipe["downstream_expert"].get(tasks[0].split_section) or {}
    listed = [name for name, value in section.items() if isinstance(value, list) and not name.endswith("_speakers")]
    splits = listed or ["train", "dev", "test"]
    require(split in splits, "-t", split, one_of(split, splits))


def check_upstream(name: str | None, checkpoint: str | None) -> None:
    """Import s3prl, adapted, and look for -u in its hub.

    Raises:
        UserError: no s3prl, no such upstream, or one of s3prl's that needs a checkpoint.
    """
    compat.install()
    from s3prl import hub

    known = [entry for entry in dir(hub) if not entry.startswith("_") and callable(getattr(hub, entry))]
    if name is None:
        return
    if name not in known:
        raise no_such(f"-u {name}", name, known)
    if checkpoint is None and name.endswith(("_local", "_url", "_custom")) and name != "baseline_local":
        raise UserError(f"-u {name} needs a checkpoint: -k {'URL' if name.endswith('_url') else 'PATH'}")
    if checkpoint is not None and name.endswith("_local") and not Path(checkpoint).exists():
        raise UserError(f"-k {checkpoint} does not exist")


def check_packages(downstream: str) -> None:
    """
    Args:
        downstream: s3prl's name of a task.

    Raises:
        UserError: a package that it needs is not installed.
    """
    needs = {name for task in TASKS.values() if task.downstream == downstream for name in task.packages}
    missing = sorted(name for name in needs if find_spec(name) is None)
    if missing:
        compiler = " (pesq needs a C compiler)" if "pesq" in missing else ""
        raise UserError(
            f"{downstream} needs packages that are not installed: uv pip install {' '.join(missing)}{compiler}"
        )
