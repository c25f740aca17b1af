"""The grid of pruned runs: which runs, that each happens once, and the numbers in the summary by hand."""

import csv
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from distiller import grid, run
from distiller.grid import Cell, cells_of, run_cells
from distiller.reports.grid_summary import interval, paired_differences, summarise
from upstream.errors import UserError

# Stands for distiller/run.py: notes that it ran, then fails, or finishes.
STUB = """
import pathlib, sys
output = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
output.mkdir(parents=True, exist_ok=True)
with (output / "ran").open("a") as file:
    file.write("x")
if "pruning.target=0.9" in sys.argv:
    sys.exit("error: pruning.target is 0.9,\\n")
(output / "report.json").touch()
"""


def row(method: str, seed: int, phone: float, target: float = 0.75, **more: Any) -> dict[str, Any]:
    return {
        "cell": f"{method}-{target:g}-{seed}", "method": method, "target": target, "seed": seed, "met": True,
        "steps": 50, "sparsity": target, "student_phone": phone, "teacher_phone": 80.0,
        "stacked_filterbank_phone": 40.0,
        "held_out_loss": 0.5, "parameters": 1000, "macs_10s": 2000, "commit": "abc", "machine": "2 x CPU",
    } | more  # fmt: skip


def test_the_first_seed_goes_through_all_targets_and_the_others_through_one() -> None:
    cells = cells_of(["skill", "dphubert", "star-pruned"], [0.5, 0.75, 0.85], 0.75, [1, 2, 3, 4, 5])
    assert len(cells) == len(set(cells)) == 9 + 12
    assert cells[:3] == [Cell(method, 0.75, 1) for method in ("skill", "dphubert", "star-pruned")]
    assert {cell.target for cell in cells if cell.seed > 1} == {0.75}
    assert cells_of(["skill"], [0.5], 0.75, [2]) == [Cell("skill", 0.75, 2), Cell("skill", 0.5, 2)]
    argv = Cell("star-pruned", 0.5, 3).argv(Path("exp"), ["trainer.steps=7"])
    assert argv[argv.index("--output") + 1] == "exp/star-pruned-0.5-3"
    recipe = recipe_of(run.parser().parse_intermixed_args(argv))
    assert (recipe.objective.name, recipe.student.name, recipe.seed) == ("star", "pruned", 3)
    assert (recipe.pruning.target, recipe.trainer.steps) == (0.5, 7)


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--methods=skil"], "--methods has skil; it must be .*did you mean skill"),
        (["--seeds=1,x"], "--seeds is '1,x', not numbers"),
        (["--jobs=0"], "--jobs is 0; it must be at least 1"),
        (["--report"], "holds no finished run"),
        (["--targets=1.5"], "pruning.target is 1.5"),
        (["trainer.step=3"], "trainer.step.*did you mean trainer.steps"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    argv: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=sentence):
        grid.carry_out(grid.parse(["--output", str(tmp_path), "--table", str(tmp_path / "t.csv"), *argv]))
    assert grid.main(["--output", str(tmp_path), "--table", str(tmp_path / "t.csv"), *argv]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_every_run_happens_once_and_a_failing_one_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "stub.py").write_text(STUB)
    monkeypatch.setattr(run, "__file__", str(tmp_path / "stub.py"))
    cells = cells_of(["skill", "dphubert"], [0.5, 0.9], 0.9, [1])
    failed = run_cells(cells, tmp_path / "out", [], jobs=2)
    assert failed == {Cell(method, 0.9, 1): "error: pruning.target is 0.9," for method in ("skill", "dphubert")}
    said = capsys.readouterr().out
    assert said.count("failed: error: pruning.target is 0.9,") == 2
    assert said.count("finished after") == 2
    run_cells(cells, tmp_path / "out", [], jobs=1)
    ran = {cell.name: len((tmp_path / "out" / cell.name / "ran").read_text()) for cell in cells}
    assert ran == {"skill-0.9-1": 2, "dphubert-0.9-1": 2, "skill-0.5-1": 1, "dphubert-0.5-1": 1}


def test_interval_by_hand() -> None:
    mean, half = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3.0
    assert half == pytest.approx(2.7764451 * math.sqrt(2.5) / math.sqrt(5))  # t of 4 degrees of freedom at 0.975
    assert interval([2.0, 2.0, 2.0]) == (2.0, 0.0)
    assert interval([7.0])[0] == 7.0
    assert math.isnan(interval([7.0])[1])


def test_pairs_are_of_the_same_seed_and_target() -> None:
    rows = [row("skill", 1, 61.0), row("skill", 2, 60.0), row("skill", 3, 59.0), row("skill", 1, 70.0, target=0.5)]
    rows += [row("dphubert", 3, 58.0), row("dphubert", 1, 58.0), row("dphubert", 9, 10.0), row("star", 4, 50.0)]
    assert paired_differences(rows, 0.75, "student_phone") == [("skill", "dphubert", [3.0, 1.0])]
    assert paired_differences(rows, 0.75, "retention_phone") == []


def test_the_summary_says_what_came_out_and_what_is_missing(tmp_path: Path) -> None:
    rows = [row("skill", seed, 60.0 + seed) for seed in (1, 2, 3)]
    rows += [row("dphubert", seed, 60.0 + 2 * seed, met=seed != 2) for seed in (1, 2, 3)]
    rows += [row("skill", 1, 70.25, target=0.5)]
    table = tmp_path / "skill.csv"
    paths = summarise(table, rows, 0.75, "python distiller/grid.py --jobs 2", {"skill-0.85-1": "error: no"})
    assert [path.name for path in paths] == ["skill.md", "skill.png"]
    assert paths[1].stat().st_size > 5000
    text = paths[0].read_text()
    # differences -1, -2, -3: mean -2, t(2) = 4.302653, half width 4.302653 / sqrt(3) = 2.48
    assert "| skill | dphubert | phones, % | -2.0 | -4.5 to +0.5 | 3 |" in text
    assert "| skill | phones, % | 62.0 | 59.5 to 64.5 | 3 |" in text
    assert "| skill | 0.5 | 1 | 50.0% | 70.2 |" in text
    assert "Off their target by more than 1 %: dphubert-0.75-2." in text
    assert "- skill-0.85-1: error: no" in text
    assert "`python distiller/grid.py --jobs 2`" in text
    unprobed = [{key: value for key, value in one.items() if "phone" not in key} for one in rows]
    assert summarise(table, unprobed, 0.75, "", {}) == [tmp_path / "skill.md"]
    assert "phones" not in (tmp_path / "skill.md").read_text()


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
        with (self.folder / "table.csv").open(newline="") as file:
            return list(csv.DictReader(file))


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
