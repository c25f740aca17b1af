"""Where a number comes from: commit, machine, memory, size."""

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from upstream.config import SAMPLE_RATE

if TYPE_CHECKING:
    from torch import nn

TEN_SECONDS = 10 * SAMPLE_RATE  # in samples
ORIGIN = "origin.json"  # in a student's folder: its teacher
LICENCES = {  # of a teacher's weights, from its own card; embedded: the older name of the bundled teacher
    ("bundled", "embedded"): (
        "Apache-2.0 (this project's own weights; docs/teacher.md names its training's recordings and licences)"
    ),
    "facebook/hubert": "Apache-2.0",
    "facebook/wav2vec2": "Apache-2.0",
    "microsoft/wavlm": "see the licence that microsoft/wavlm's own card names",
}


def commit() -> str:
    """The repository's commit, with -dirty when files differ from it; "unknown" outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def command_line(name: str) -> str:
    """This process's command line, for a shell: that of distiller/NAME.py."""
    return shlex.join(["python", f"distiller/{name}.py", *sys.argv[1:]])


def machine() -> str:
    """Number and kind of processors, and the accelerator if there is one."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", cpuinfo.read_text() if cpuinfo.exists() else "")
    name = f"{os.cpu_count()} x {models[0] if models else platform.processor() or platform.machine()}"
    return name + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "")


def peak_memory_mb(device: str = "cpu", children: bool = False) -> float:
    """Most memory used so far, in MB (10^6 bytes): allocated on the GPU, or resident in this process.

    Args:
        children: the largest of this process and its ended children.
    """
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 1e6
    import resource  # not on Windows

    processes = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN) if children else (resource.RUSAGE_SELF,)
    peak = max(resource.getrusage(process).ru_maxrss for process in processes)
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6  # bytes on macOS, KiB elsewhere


def parameter_count(module: "nn.Module") -> int:
    """Number of parameters of a module, including those in an ONNX file."""
    exported = sum(getattr(part, "exported_parameters", 0) for part in module.modules())
    return exported + sum(parameter.numel() for parameter in module.parameters())


def public(name: str) -> str:
    """A path without its folders, which only matter on this machine; a hub name or a word unchanged."""
    path = PurePath(name)
    return path.name if path.is_absolute() or name.startswith((".", "~")) else name


def teachers_of(recipe: Mapping[str, Any]) -> list[str]:
    """The public names of a saved recipe's teachers."""
    return [public(teacher["path"]) for teacher in recipe.get("teachers") or [{"path": recipe["teacher"]}]]


def teacher_licence(teacher: str) -> str:
    """The licence of a teacher's weights, as stated on a student's card."""
    return next((text for prefix, text in LICENCES.items() if teacher.startswith(prefix)), "as the teacher's")
