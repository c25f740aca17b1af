#!/usr/bin/env python
"""Pruning to several sizes by several objectives, with seeds: every run, their table, and what differs by how much."""

import sys
from pathlib import Path

if __name__ == "__main__":  # runs uninstalled and from any directory; distiller/ itself is no place to import from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
import os
import shlex
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from distiller import run
from distiller.common.command import Parser, run_command
from distiller.distillation.run_folder import check_same_recipe, is_complete
from distiller.recipes.command_line import with_absolute_paths
from distiller.recipes.recipe import Recipe, resolve
from upstream.errors import UserError, one_of

EPILOG = """\
examples:
  python distiller/grid.py --output exp/grid --table docs/results/skill.csv --jobs 2
  python distiller/grid.py --output exp/grid --table docs/results/skill.csv --jobs 2 trainer.steps=200
  python distiller/grid.py --output exp/grid --table exp/grid/half.csv --targets 0.5 --seeds 1,2,3 --paired 0.5
  python distiller/grid.py --output exp/grid --table docs/results/skill.csv --report

The first of --seeds goes through all --targets, the others through --paired alone. Runs are made by distiller/run.py,
which any key=value reaches; the same command again continues them, and finished ones are not made again. Beside the
table come a summary (.md) and a figure (.png).
"""
METHODS: dict[str, tuple[str, ...]] = {  # the options of distiller/run.py
    "skill": ("--method", "skill"),
    "dphubert": ("--method", "dphubert"),
    "star-pruned": ("--method", "skill", "objective=star"),
}
POLL = 0.2  # seconds between looks at the runs
SPEEDS = "speeds.json"  # below the output: what was measured of each run's student


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    method: str
    target: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}-{self.target:g}-{self.seed}"

    def recipe(self, overrides: Sequence[str]) -> Recipe:
        """What distiller/run.py makes of the cell."""
        _, method, *more = METHODS[self.method]
        return resolve(method, overrides=[*more, f"pruning.target={self.target:g}", f"seed={self.seed}", *overrides])

    def argv(self, output: Path, overrides: Sequence[str]) -> list[str]:
        """Options of distiller/run.py."""
        asked = [f"pruning.target={self.target:g}", f"seed={self.seed}"]
        return [*METHODS[self.method], "--output", str(output / self.name), *asked, *overrides]


def cells_of(methods: Sequence[str], targets: Sequence[float], paired: float, seeds: Sequence[int]) -> list[Cell]:
    """The first seed at every target, then the other seeds at the paired one, all methods of a seed together."""
    grid = [Cell(method, target, seeds[0]) for target in dict.fromkeys([paired, *targets]) for method in methods]
    return grid + [Cell(method, paired, seed) for seed in seeds[1:] for method in methods]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """
    Raises:
        UserError: an option that does not exist or cannot be.
    """
    parser = Parser(prog="distiller/grid.py", description=__doc__, epilog=EPILOG)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a folder for all runs")
    parser.add_argument("--table", type=Path, required=True, metavar="CSV", help="rows are appended to it")
    parser.add_argument("--methods", default=",".join(METHODS), help=f"({','.join(METHODS)})")
    parser.add_argument("--targets", default="0.5,0.75,0.85", help="sparsities (0.5,0.75,0.85)")
    parser.add_argument("--paired", type=float, default=0.75, help="the target at which seeds are repeated (0.75)")
    parser.add_argument("--seeds", default="1,2,3,4,5", help="(1,2,3,4,5)")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, which share the cores (1)")
    parser.add_argument("--report", action="store_true", help="train nothing: table and summary of what is finished")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="changes in every run's recipe")
    options = parser.parse_intermixed_args(argv)
    options.methods = options.methods.split(",")
    for method in options.methods:
        if method not in METHODS:
            raise UserError(f"--methods has {method}; it must be {one_of(method, list(METHODS))}")
    options.targets, options.seeds = _numbers(options, "targets", float), _numbers(options, "seeds", int)
    if options.jobs < 1:
        raise UserError(f"--jobs is {options.jobs}; it must be at least 1")
    return options


def _numbers(options: argparse.Namespace, name: str, number: type) -> list[Any]:
    try:
        return list(dict.fromkeys(number(one) for one in getattr(options, name).split(",")))
    except ValueError:
        raise UserError(f"--{name} is '{getattr(options, name)}', not numbers with commas between them") from None


def check(cells: Iterable[Cell], output: Path, overrides: Sequence[str]) -> str:
    """The teacher of all cells.

    Raises:
        UserError: a recipe that cannot be, or a finished run of another recipe.
    """
    recipes = {cell: with_absolute_paths(cell.recipe(overrides)) for cell in cells}
    for cell, recipe in recipes.items():
        if is_complete(output / cell.name):
            check_same_recipe(output / cell.name, recipe)
    return next(iter(recipes.values())).teacher


def run_cells(cells: Sequence[Cell], output: Path, overrides: Sequence[str], jobs: int) -> dict[Cell, str]:
    """Make the runs that are not finished, `jobs` at a time; returns those that failed, and what each said last."""
    waiting = [cell for cell in cells if not is_complete(output / cell.name)]
    running: dict[Cell, tuple[subprocess.Popen, float]] = {}
    failed: dict[Cell, str] = {}
    say(f"{len(cells)} runs, {len(cells) - len(waiting)} of them finished before, {jobs} at a time")
    done = len(cells) - len(waiting)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                running[cell] = (_start(cell, output, overrides, jobs), time.monotonic())
            time.sleep(POLL)
            for cell, (process, start) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[cell]
                done += 1
                log = output / f"{cell.name}.log"
                if process.returncode or not is_complete(output / cell.name):
                    failed[cell] = last_line(log) or f"exit code {process.returncode}"
                outcome = f"failed: {failed[cell]} ({log})" if cell in failed else "finished"
                say(f"[{done}/{len(cells)}] {cell.name}: {outcome} after {time.monotonic() - start:.0f} s")
    finally:  # interrupted: each run keeps what it has, and goes on from there the next time
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.wait()
    return failed


def _start(cell: Cell, output: Path, overrides: Sequence[str], jobs: int) -> subprocess.Popen:
    output.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    say(f"{cell.name}: started, output in {output / cell.name}.log")
    with (output / f"{cell.name}.log").open("ab") as log:
        command = [sys.executable, run.__file__, *cell.argv(output, overrides)]
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)


def last_line(log: Path) -> str:
    """What a run that failed said last."""
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def speeds(cells: Sequence[Cell], output: Path, teacher: str) -> dict[str, dict[str, float]]:
    """Real-time factor of each cell's student, one thread, and its speed-up over the teacher, by the cell's name.

    Those not measured before are measured in one run with the teacher, taking turns.
    """
    path = output / SPEEDS
    known: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
    missing = [cell.name for cell in cells if cell.name not in known]
    if missing:
        from distiller.benchmarks.inference import Setting, measure
        from distiller.common.files import write_json
        from distiller.distillation.teacher import BUNDLED_TEACHER

        say(f"measuring the speed of {len(missing)} students")
        targets = [str(BUNDLED_TEACHER) if teacher == "bundled" else teacher]
        targets += [str(output / name / "student") for name in missing]
        first, *students = (row.real_time_factor[1] for row in measure(targets, Setting(batches=(1,))))
        for name, factor in zip(missing, students, strict=True):
            known[name] = {"real_time_factor": round(factor, 6), "speed_up": round(first / factor, 3)}
        write_json(path, known)
    return known


def say(line: str) -> None:
    print(line, flush=True)


def carry_out(options: argparse.Namespace) -> int:
    cells = cells_of(options.methods, options.targets, options.paired, options.seeds)
    teacher = check(cells, options.output, options.overrides)
    failed = {} if options.report else run_cells(cells, options.output, options.overrides, options.jobs)
    finished = [cell for cell in cells if is_complete(options.output / cell.name)]
    if not finished:
        raise UserError(f"{options.output} holds no finished run, so there is nothing to report")

    from distiller.reports.grid_summary import summarise
    from distiller.reports.results import append, row

    measured = speeds(finished, options.output, teacher)
    rows = [
        {"cell": cell.name, "method": cell.method} | row(options.output / cell.name) | measured[cell.name]
        for cell in finished
    ]
    say(f"{append(options.table, rows)} rows added to {options.table}")
    missing = {cell.name: failed.get(cell, "not finished") for cell in cells if cell not in finished}
    command = shlex.join(["python", "distiller/grid.py", *sys.argv[1:]])
    for path in summarise(options.table, rows, options.paired, command, missing):
        say(f"{path}")
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0; 1 when a run failed; 2 for a mistake of the user's; 130 or 143 when interrupted."""
    return run_command(lambda: carry_out(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
