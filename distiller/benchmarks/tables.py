"""The table that a benchmark prints, and its CSV: the rows, and where and how they were measured."""

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Column, Table

from distiller.common.files import write_csv
from distiller.common.provenance import command_line, commit, machine


def three(value: float | None) -> str:
    """A number with three significant digits, and every digit before the point; "-" if there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    rounded = abs(float(f"{value:.3g}"))
    if rounded >= 100:
        return f"{value:.0f}"
    return f"{value:.2e}" if 0 < rounded < 1e-4 else f"{value:#.3g}"


def print_table(name: str, titles: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> None:
    """Rows of a name and a cell for each of `titles`; `name` is the title of the names, which alone may wrap."""
    numbers = (Column(title, justify="right", no_wrap=True) for title in titles)
    table = Table(Column(name, overflow="fold"), *numbers, box=box.SIMPLE_HEAD, caption=caption, padding=(0, 1, 0, 0))
    table.show_edge = False
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def write_table(path: Path, rows: Sequence[dict[str, Any]], tell: bool = True) -> None:
    """Write the rows, numbers with four significant digits, with columns for machine, version of torch, commit and
    command line; print where they are if `tell`.

    A copy without its repository takes the commit from the variable COMMIT.
    """
    origin = {
        "machine": machine(),
        "torch": torch.__version__,
        "commit": os.environ.get("COMMIT") or commit(),
        "command": command_line("benchmark"),
    }
    write_csv(path, [{key: four(value) for key, value in row.items()} | origin for row in rows])
    if tell:
        print(f"{path} written")


def four(value: Any) -> Any:
    """A number rounded to four significant digits, with every digit before the point; anything else unchanged."""
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    return round(value) if abs(value) >= 1000 else float(f"{value:.4g}")
