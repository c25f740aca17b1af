"""Several methods, with several seeds and, if they prune, sizes: all runs, a table, and the differences."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from distiller.common.files import write_json
from distiller.common.provenance import command_line
from distiller.distillation.run_folder import check_same_recipe, is_complete
from distiller.recipes.command_line import with_absolute_paths
from distiller.recipes.recipe import Recipe, resolve
from distiller.reports.results import append, row
from upstream.errors import UserError

RUN = Path(__file__).parents[1] / "run.py"
POLL = 0.2  # seconds between polls of the runs
SPEEDS = "speeds.json"  # in the output: the measurements of each run's student
say = partial(print, flush=True)


@dataclass(frozen=True)
class Method:
    """A method of distiller/run.py with overrides, under its own name."""

    name: str
    method: str
    overrides: tuple[str, ...] = ()

    @property
    def prunes(self) -> bool:
        return resolve(self.method, overrides=self.overrides).pruning is not None


METHODS = {
    method.name: method
    for method in (
        Method("skill", "skill"),
        Method("dphubert", "dphubert"),
        Method("star-pruned", "skill", ("objective=star",)),
        Method("star", "star"),
        Method("distilhubert", "distilhubert"),
    )
}
PRUNING = ("skill", "dphubert", "star-pruned")


@dataclass(frozen=True)
class Cell:
    """One run of the grid; `target` is None if the method does not prune."""

    method: Method
    target: float | None
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method.name}-{'' if self.target is None else f'{self.target:g}-'}{self.seed}"

    @property
    def overrides(self) -> list[str]:
        target = [] if self.target is None else [f"pruning.target={self.target:g}"]
        return [*self.method.overrides, *target, f"seed={self.seed}"]

    def recipe(self, more: Sequence[str]) -> Recipe:
        """The recipe that distiller/run.py makes from the cell and `more` overrides."""
        return with_absolute_paths(resolve(self.method.method, overrides=[*self.overrides, *more]))

    def argv(self, output: Path, more: Sequence[str]) -> list[str]:
        """Arguments of distiller/run.py."""
        return ["--method", self.method.method, "--output", str(output / self.name), *self.overrides, *more]


def cells_of(methods: Sequence[Method], targets: Sequence[float], paired: float, seeds: Sequence[int]) -> list[Cell]:
    """The first seed at every target, then the other seeds at the paired one, all methods of a seed together."""
    prunes = {method: method.prunes for method in methods}
    rounds = [(target, seeds[0]) for target in (paired, *targets)] + [(paired, seed) for seed in seeds[1:]]
    cells = [Cell(method, target if prunes[method] else None, seed) for target, seed in rounds for method in methods]
    return list(dict.fromkeys(cells))


def run_grid(
    cells: Sequence[Cell], output: Path, table: Path, paired: float, jobs: int, overrides: Sequence[str], report: bool
) -> bool:
    """Make the runs, then their table, summary and figure; returns whether all runs succeeded.

    Args:
        paired: the target at which seeds are compared.
        report: train nothing, only report finished runs.

    Raises:
        UserError: a recipe is wrong, a finished run has another recipe, or no run is finished.
    """
    recipes = {cell: cell.recipe(overrides) for cell in cells}
    for cell, recipe in recipes.items():
        if is_complete(output / cell.name):
            check_same_recipe(output / cell.name, recipe)
    failed = {} if report else run_cells(cells, output, overrides, jobs)
    finished = [cell for cell in cells if is_complete(output / cell.name)]
    if not finished:
        raise UserError(f"{output} contains no finished run, so there is nothing to report")
    measured = speeds(finished, output, recipes[cells[0]].teacher)
    names = [{"cell": cell.name, "method": cell.method.name} for cell in finished]
    rows = [name | row(output / name["cell"]) | measured[name["cell"]] for name in names]
    say(f"{append(table, rows)} rows added to {table}")
    missing = {cell.name: failed.get(cell, "not finished") for cell in cells if cell not in finished}

    from distiller.reports.grid_summary import summarise  # takes a second

    for path in summarise(table, rows, paired, command_line("grid"), missing):
        say(path)
    return not failed


def run_cells(cells: Sequence[Cell], output: Path, overrides: Sequence[str], jobs: int) -> dict[Cell, str]:
    """Make the unfinished runs, `jobs` at a time; returns those that failed, with the last line of each."""
    waiting = [cell for cell in cells if not is_complete(output / cell.name)]
    running: dict[Cell, tuple[subprocess.Popen, float]] = {}
    failed: dict[Cell, str] = {}
    done = len(cells) - len(waiting)
    say(f"{len(cells)} runs, {done} already finished, {jobs} at a time")
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                more = [*overrides, *_references(cell, cells, output, overrides)]
                running[cell] = (_start(cell, output, more, jobs), time.monotonic())
            time.sleep(POLL)
            for cell, (process, start) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[cell]
                done += 1
                log = output / f"{cell.name}.log"
                if process.returncode or not is_complete(output / cell.name):
                    _, _, last_line = log.read_text(errors="replace").strip().rpartition("\n")
                    failed[cell] = last_line.strip() or f"exit code {process.returncode}"
                ending = f"failed: {failed[cell]} ({log})" if cell in failed else "finished"
                say(f"[{done}/{len(cells)}] {cell.name}: {ending} after {time.monotonic() - start:.0f} s")
    finally:  # interrupted: each run keeps its checkpoints and continues from them the next time
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.wait()
    return failed


def _references(cell: Cell, cells: Sequence[Cell], output: Path, overrides: Sequence[str]) -> list[str]:
    """The override that spares a run from probing its teacher, if a finished run already has."""
    recipe = cell.recipe(overrides)
    if recipe.probe.references is not None or not (recipe.probe.enabled or recipe.probe.words):
        return []
    for other in cells:
        if is_complete(output / other.name):
            measured = other.recipe(overrides)
            if (measured.teacher, measured.probe) == (recipe.teacher, recipe.probe):
                return [f"probe.references={json.dumps(str(output / other.name))}"]
    return []


def _start(cell: Cell, output: Path, overrides: Sequence[str], jobs: int) -> subprocess.Popen:
    output.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    path = output / f"{cell.name}.log"
    say(f"{cell.name}: started, output in {path}")
    with path.open("ab") as log:
        command = [sys.executable, str(RUN), *cell.argv(output, overrides)]
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)


def speeds(cells: Sequence[Cell], output: Path, teacher: str) -> dict[str, dict[str, float]]:
    """Real-time factor of each cell's student on one thread and its speed-up over the teacher, by the cell's name.

    Those not measured before are measured together with the teacher, alternating.
    """
    path = output / SPEEDS
    known: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
    missing = [cell.name for cell in cells if cell.name not in known]
    if missing:
        from distiller.benchmarks.inference import Setting, measure

        say(f"measuring the speed of {len(missing)} students")
        targets = [teacher, *(str(output / name / "student") for name in missing)]
        for name, measured in zip(missing, measure(targets, Setting(batches=(1,)))[1:], strict=True):
            known[name] = {key: measured[key] for key in ("real_time_factor", "speed_up")}
        write_json(path, known)
    return known
