"""The grid of pruned runs: which runs, that each happens once, and that an interrupted grid continues."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from distiller import grid, run
from distiller.benchmarks.grid import METHODS, Cell, Method, cells_of, run_cells
from distiller.common.files import read_csv
from distiller.recipes.command_line import recipe_of

# Stands for distiller/run.py: notes that it ran, then fails, or finishes.
STUB = """
import pathlib, sys
output = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
output.mkdir(parents=True, exist_ok=True)
with (output / "ran").open("a") as file:
    file.write("x")
(output / "references").write_text("".join(word for word in sys.argv if word.startswith("probe.references=")))
if "pruning.target=0.9" in sys.argv:
    sys.exit("error: pruning.target is 0.9,\\n")
(output / "report.json").touch()
"""


def test_the_first_seed_goes_through_all_targets_and_the_others_through_one() -> None:
    skill, dphubert, star = (METHODS[name] for name in ("skill", "dphubert", "star-pruned"))
    cells = cells_of([skill, dphubert, star], [0.5, 0.75, 0.85], 0.75, [1, 2, 3, 4, 5])
    assert len(cells) == len(set(cells)) == 9 + 12
    assert cells[:3] == [Cell(method, 0.75, 1) for method in (skill, dphubert, star)]
    assert {cell.target for cell in cells if cell.seed > 1} == {0.75}
    assert cells_of([skill], [0.5], 0.75, [2]) == [Cell(skill, 0.75, 2), Cell(skill, 0.5, 2)]
    argv = Cell(star, 0.5, 3).argv(Path("exp"), ["trainer.steps=7"])
    recipe = recipe_of(run.parser().parse_intermixed_args(argv))
    assert (recipe.objective.name, recipe.student.name, recipe.seed) == ("star", "pruned", 3)
    assert (recipe.pruning.target, recipe.trainer.steps) == (0.5, 7)
    assert argv[argv.index("--output") + 1] == "exp/star-pruned-0.5-3"


def test_a_method_that_does_not_prune_has_a_run_for_each_seed() -> None:
    raw = Method("raw", "star", ("objective.scaling=none",))
    cells = cells_of([METHODS["star"], raw], [0.5, 0.75], 0.75, [1, 2])
    assert [cell.name for cell in cells] == ["star-1", "raw-1", "star-2", "raw-2"]
    recipe = cells[1].recipe(["trainer.steps=7"])
    assert (recipe.objective.scaling, recipe.pruning, recipe.seed, recipe.trainer.steps) == ("none", None, 1, 7)


def test_every_run_happens_once_and_a_failing_one_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "stub.py").write_text(STUB)
    monkeypatch.setattr("distiller.benchmarks.grid.RUN", tmp_path / "stub.py")
    methods = [METHODS["skill"], METHODS["dphubert"]]
    cells = cells_of(methods, [0.5, 0.9], 0.9, [1])
    failed = run_cells(cells, tmp_path / "out", [], jobs=2)
    assert failed == {Cell(method, 0.9, 1): "error: pruning.target is 0.9," for method in methods}
    said = capsys.readouterr().out
    assert said.count("failed: error: pruning.target is 0.9,") == 2
    assert said.count("finished after") == 2
    run_cells(cells, tmp_path / "out", [], jobs=1)
    ran = {cell.name: len((tmp_path / "out" / cell.name / "ran").read_text()) for cell in cells}
    assert ran == {"skill-0.9-1": 2, "dphubert-0.9-1": 2, "skill-0.5-1": 1, "dphubert-0.5-1": 1}
    teacher_rows = f'probe.references="{tmp_path / "out" / "skill-0.5-1"}"'  # of the first that finished
    assert (tmp_path / "out" / "dphubert-0.9-1" / "references").read_text() == teacher_rows
    assert not (tmp_path / "out" / "skill-0.5-1" / "references").read_text()  # nothing was finished then


def test_only_a_run_with_the_same_teacher_and_probes_lends_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_teacher: Path
) -> None:
    (tmp_path / "stub.py").write_text(STUB)
    monkeypatch.setattr("distiller.benchmarks.grid.RUN", tmp_path / "stub.py")
    other = Method("other", "star", (f"teacher={tiny_teacher}",))
    unprobed = Method("unprobed", "star", ("probe.enabled=false",))
    cells = cells_of([METHODS["star"], other, unprobed, METHODS["distilhubert"]], [0.5], 0.5, [1])
    run_cells(cells, tmp_path / "out", [], jobs=1)
    lent = {cell.method.name: (tmp_path / "out" / cell.name / "references").read_text() for cell in cells}
    assert lent.pop("distilhubert") == f'probe.references="{tmp_path / "out" / "star-1"}"'
    assert lent == {"star": "", "other": "", "unprobed": ""}


class Grid:
    """`python distiller/grid.py` over two methods on a tiny teacher and noises, where one target cannot be reached."""

    def __init__(self, folder: Path, teacher: Path) -> None:
        self.folder, self.output = folder, folder / "out"
        (folder / "noise").mkdir()
        random = np.random.default_rng(0)
        for index in range(16):
            noise = 0.1 * random.standard_normal(4000 + 250 * index)
            soundfile.write(folder / "noise" / f"{index:02}.wav", noise, 16_000)
        small = (
            "corpus.batch_seconds=2", "corpus.workers=0", "corpus.validation_share=0.2", "trainer.steps=30",
            "trainer.checkpoint_every=2", "trainer.validate_every=30", "trainer.accelerator=cpu", "probe.enabled=false",
            "pruning.lr=0.002", f"teacher={teacher}", "corpus.path=noise",
        )  # fmt: skip
        self.command = [
            sys.executable, grid.__file__, "--output", "out", "--table", "table.csv", "--jobs", "2", "--seeds", "1",
            "--methods", "dphubert,star-pruned", "--targets", "0.4,0.99", "--paired", "0.4", *small,
        ]  # fmt: skip

    def start(self) -> subprocess.Popen:
        with (self.folder / "log.txt").open("ab") as log:
            return subprocess.Popen(self.command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True)

    def wait_for(self, path: str, process: subprocess.Popen) -> None:
        while not (self.output / path).exists():
            assert process.poll() is None, self.log()
            time.sleep(0.05)

    def log(self) -> str:
        return (self.folder / "log.txt").read_text()

    def rows(self) -> list[dict[str, str]]:
        return read_csv(self.folder / "table.csv")


@pytest.mark.slow
def test_killed_and_stopped_a_grid_goes_on_to_the_same_table(tmp_path: Path, tiny_teacher: Path) -> None:
    one = Grid(tmp_path, tiny_teacher)
    process = one.start()
    one.wait_for("dphubert-0.4-1/joint/checkpoints", process)
    os.killpg(process.pid, signal.SIGKILL)  # with its runs
    process.wait()
    assert not (tmp_path / "table.csv").exists()
    shutil.rmtree(one.output / "star-pruned-0.4-1", ignore_errors=True)  # begun or not, as the kill came late or early
    process = one.start()
    one.wait_for("star-pruned-0.4-1/joint/checkpoints", process)
    process.terminate()  # alone: it ends its runs, so that they are not in the way of the next start
    assert process.wait(timeout=60) == 143
    process = one.start()
    assert process.wait(timeout=240) == 1, one.log()
    rows = one.rows()
    assert [(row["cell"], row["steps"]) for row in rows] == [("dphubert-0.4-1", "15"), ("star-pruned-0.4-1", "15")]
    for row in rows:
        assert abs(float(row["sparsity"]) - 0.4) <= 0.01 or row["met"] == "False"
        assert float(row["real_time_factor"]) > 0
        layers = [float(row[f"cka_distance_{layer}"]) for layer in (1, 2)]
        assert float(row["cka_distance"]) == pytest.approx(sum(layers) / 2, abs=1e-4)
    summary = (tmp_path / "table.md").read_text()
    for method in ("dphubert", "star-pruned"):
        assert f"- {method}-0.99-1: error: pruning.target is 0.99, but it must be at most" in summary
    assert "in use" not in one.log()
    process = one.start()  # what failed is tried again, what is finished is not
    assert process.wait(timeout=120) == 1
    assert one.rows() == rows
