"""The table that a benchmark prints, and its CSV: the rows, and where and how they were measured."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Column, Table

from distiller.common.files import write_csv
from distiller.common.provenance import command_line, commit, machine


def print_table(name: str, titles: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> None:
    """Rows of a name and a number for each of `titles`; `name` is the title of the names."""
    numbers = (Column(title, justify="right") for title in titles)
    table = Table(Column(name, overflow="fold"), *numbers, box=box.SIMPLE, caption=caption)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


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
