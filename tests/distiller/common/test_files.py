import errno
from pathlib import Path

import pytest

from distiller.common.files import StepTable, write_text, writing
from upstream.errors import UserError


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")

    def write_half() -> None:
        with writing(path) as temporary:
            temporary.write_text("half of the n")
            raise OSError(errno.ENOSPC, "full")

    with pytest.raises(UserError, match=r"report\.json cannot be written: No space left"):
        write_half()
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["report.json"]


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/x/report\.json cannot be written: Not a directory"):
        write_text(tmp_path / "file" / "x" / "report.json", "new")


def test_step_table_drops_the_rows_that_are_made_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    table = StepTable(path, first_step=1)
    for step in (1, 2, 3):
        table.append({"step": step, "loss": step / 2})
    with path.open("a") as file:
        file.write("4,0")  # a kill in the middle of a row
    resumed = StepTable(path, first_step=3)
    resumed.append({"step": 3, "loss": 9.0})
    assert path.read_text() == "step,loss\n1,0.5\n2,1\n3,9\n"
