"""The summary of a grid: its numbers by hand."""

import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot as plt

from distiller.reports.grid_summary import paired_differences, summarise
from distiller.reports.intervals import interval


def row(method: str, seed: int, phone: float, target: float = 0.75, **more: Any) -> dict[str, Any]:
    return {
        "cell": f"{method}-{target:g}-{seed}", "method": method, "target": target, "seed": seed, "met": True,
        "steps": 50, "sparsity": target, "student_phone": phone, "teacher_phone": 80.0,
        "stacked_filterbank_phone": 40.0,
        "held_out_loss": 0.5, "parameters": 1000, "macs_10s": 2000, "commit": "abc", "machine": "2 x CPU",
    } | more  # fmt: skip


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
    assert plt.imread(paths[1]).std() > 0.05
    text = paths[0].read_text()
    # differences -1, -2, -3: mean -2, t(2) = 4.302653, half width 4.302653 / sqrt(3) = 2.48
    assert "| skill | dphubert | 3 | -2.0 (-4.5 to +0.5) |" in text
    assert "| skill | 3 | 62.0 (59.5 to 64.5) |" in text
    assert "| skill | 0.5 | 1 | 50.0% | 70.2 |" in text
    assert "Off their target by more than 1 %: dphubert-0.75-2." in text
    assert "- skill-0.85-1: error: no" in text
    assert "`python distiller/grid.py --jobs 2`" in text
    unprobed = [{key: value for key, value in one.items() if "phone" not in key} for one in rows]
    assert summarise(table, unprobed, 0.75, "", {}) == [tmp_path / "skill.md"]
    assert "phones" not in (tmp_path / "skill.md").read_text()


def test_runs_that_do_not_prune_are_compared_and_recordings_have_their_measure(tmp_path: Path) -> None:
    def narrow(seed: int, words: float) -> dict[str, Any]:
        pruning = ("target", "met", "sparsity")
        return {key: value for key, value in row("star", seed, 70.0).items() if key not in pruning} | more(words)

    def more(words: float) -> dict[str, Any]:
        return {"student_word_it": words, "student_word_best_it": 99.0}

    rows = [narrow(1, 50.0), narrow(2, 52.0), row("skill", 1, 60.0, **more(40.0)), row("skill", 2, 60.0, **more(43.0))]
    assert paired_differences(rows, 0.75, "student_word_it") == [("star", "skill", [10.0, 9.0])]
    text = summarise(tmp_path / "both.csv", rows, 0.75, "", {})[0].read_text()
    assert "| star | 2 | 70.0 (70.0 to 70.0) | 51.0 (38.3 to 63.7) |" in text
    assert "| star | skill | 2 | **+10.0 (+10.0 to +10.0)** | **+9.5 (+3.1 to +15.9)** |" in text
    assert "99.0" not in text
    assert plt.imread(tmp_path / "both.png").std() > 0.05
