"""The CSV of a benchmark: its rows, and where and how they were measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from distiller.common.files import write_csv
from distiller.common.provenance import command_line, commit, machine


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows with columns for machine, version of torch, commit and command line; say where they are."""
    origin = {
        "machine": machine(),
        "torch": torch.__version__,
        "commit": commit(),
        "command": command_line("benchmark"),
    }
    write_csv(path, [row | origin for row in rows])
    print(f"{path} written")
