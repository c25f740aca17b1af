"""Training checkpoints: written atomically, the last two kept; a run resumes from the newest readable one."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from distiller.common.files import disk_errors, remove
from upstream.files import PART, sync_directory

KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A readable checkpoint and its content, memory-mapped."""

    path: Path
    content: dict[str, Any]

    @property
    def step(self) -> int:
        return self.content["progress"]["step"]


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that can be read; None when there is none."""
    for path in sorted(folder.glob("step-*.ckpt"), reverse=True):
        try:
            return Checkpoint(path, torch.load(path, map_location="cpu", weights_only=True, mmap=True))
        except Exception:  # torch raises several kinds for a damaged file; in any case, try the previous one
            continue
    return None


def save_checkpoint(fabric: Fabric, folder: Path, step: int, state: dict[str, Any]) -> None:
    """Save after optimiser step `step`; every rank takes part.

    Raises:
        UserError: the disk is full or cannot be written; earlier checkpoints are unchanged.
    """
    path = folder / f"step-{step:08d}.ckpt"
    temporary = path.with_name(f"{PART}{path.name}")  # the same on every rank
    with disk_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            fabric.save(temporary, state)
            if fabric.is_global_zero:
                with temporary.open("rb") as written:
                    os.fsync(written.fileno())
                os.replace(temporary, path)
                sync_directory(folder)
        except RuntimeError as error:  # torch's, about a file truncated by a full disk
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None
        finally:
            if fabric.is_global_zero:
                temporary.unlink(missing_ok=True)
    if fabric.is_global_zero:
        for old in sorted(folder.glob("step-*.ckpt"))[:-KEPT]:
            remove(old)
