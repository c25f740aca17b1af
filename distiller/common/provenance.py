"""Where a number comes from: commit, machine, memory."""

import os
import platform
import re
import resource
import subprocess
import sys
from pathlib import Path

import torch

TEN_SECONDS = 160_000


def commit() -> str:
    """The repository's commit, with -dirty when files differ from it; "unknown" outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> str:
    """Number and kind of processors, and the accelerator if there is one."""
    models = re.findall(r"model name\s*: (.*)", _read("/proc/cpuinfo"))
    name = f"{os.cpu_count()} x {models[0] if models else platform.processor() or platform.machine()}"
    return name + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "")


def _read(path: str) -> str:
    return Path(path).read_text() if os.path.exists(path) else ""


def peak_rss_mb() -> float:
    """The most memory that this process, or any worker of it, held at once."""
    used = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(used) / 1024


def peak_mb(device: str) -> float:
    """Most memory so far, in MB (10^6 bytes): of the GPU, or resident of this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3  # bytes there, kB elsewhere


def parameter_count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
