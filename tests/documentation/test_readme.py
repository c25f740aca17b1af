"""README is short, and shows what the programs print."""

import io
import re

from rich.console import Console

from distiller.reports.report import COLUMNS, ROWS, _probe_table
from tests.documentation.pages import ROOT

README = (ROOT / "README.md").read_text()


def test_it_is_short() -> None:
    assert len(README.splitlines()) < 150


def test_the_table_is_laid_out_as_a_run_prints_it() -> None:
    block = re.search(r"```\n( +Linear probe.*?)```", README, re.DOTALL)
    assert block is not None
    lines = [line.rstrip() for line in block[1].splitlines() if line.strip()]
    numbers = [[float(number) for number in re.findall(r"\d+\.\d+", line)] for line in lines[3:]]
    probe = {row: dict(zip(COLUMNS, values, strict=True)) for row, values in zip(ROWS, numbers[:-1], strict=True)}
    retention = dict(zip(COLUMNS, numbers[-1], strict=False))
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(_probe_table({"recipe": {"objective": {"name": "star"}}, "probe": probe, "retention": retention}))
    assert [line.rstrip() for line in console.export_text().splitlines() if line.strip()] == lines
