"""The checkpoints that s3prl's runner keeps."""

import argparse
import re
from pathlib import Path
from typing import Any

import torch


def read_checkpoint(path: Path) -> dict[str, Any]:
    """One of the runner's checkpoints on the CPU, without running code; tensors stay on the disk until they are used.

    A truncated file raises whatever torch.load does.
    """
    # The runner's arguments, which are harmless. Not in a context manager: it would undo what the runner relies on.
    torch.serialization.add_safe_globals([argparse.Namespace])
    text = str(path).isprintable()  # False for names that are not UTF-8, which torch cannot map
    return torch.load(path, map_location="cpu", weights_only=True, mmap=text)


def is_complete(path: Path) -> bool:
    """Whether a checkpoint can be read: a killed process may have truncated it."""
    try:
        read_checkpoint(path)
    except Exception:  # the unpickler raises almost anything on a truncated archive
        return False
    return True


def regular_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of regular steps, states-STEP.ckpt, in the order of their steps."""
    return sorted((path for path in folder.glob("states-*.ckpt") if step_of(path) >= 0), key=step_of)


def step_of(path: Path) -> int:
    """The step of states-STEP.ckpt; -1 for any other name."""
    match = re.fullmatch(r"states-(\d+)", path.stem)
    return int(match[1]) if match else -1
