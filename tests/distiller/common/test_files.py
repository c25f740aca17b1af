"""Atomic files and folders, locks, tables, and the cache."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distiller.common.files import (
    StepTable,
    cache_folder,
    lock_folder,
    read_columns,
    read_csv,
    write_csv,
    write_text,
    writing,
    writing_folder,
)
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
    with pytest.raises(UserError, match=r"file/x/report\.json cannot be written: .*/file is a file"):
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


def test_a_csv_has_the_columns_of_every_row(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "table.csv", [{"a": 1, "b": 2.5}, {"a": 3, "c": "x"}])
    assert path.read_text() == "a,b,c\n1,2.5,\n3,,x\n"
    assert read_csv(path)[1] == {"a": "3", "b": "", "c": "x"}
    assert read_columns(write_csv(path, [{"a": 1, "b": 2.5}])) == {"a": [1.0], "b": [2.5]}
    assert read_csv(tmp_path / "missing.csv") == []


def test_a_folder_appears_when_its_block_is_done(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "prepared"

    def fill_half() -> None:
        with writing_folder(folder) as unfinished:
            (unfinished / "half").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fill_half()
    assert list((tmp_path / "cache").iterdir()) == []
    with writing_folder(folder) as unfinished:
        (unfinished / "a").touch()
        assert not folder.exists()
    with writing_folder(folder) as existing:
        assert existing == folder
        assert [path.name for path in existing.iterdir()] == ["a"]


def test_a_refused_start_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such corpus"), lock_folder(tmp_path / "exp" / "run"):
        raise UserError("no such corpus")
    assert list(tmp_path.iterdir()) == []

    def fail_later() -> None:
        with lock_folder(tmp_path / "run"):
            (tmp_path / "run" / "work").touch()
            raise UserError("the disk is full")

    with pytest.raises(UserError):
        fail_later()
    assert (tmp_path / "run" / "work").exists()


HOLD = "import sys; from pathlib import Path; from distiller.common.files import lock_folder\n"
HOLD += "with lock_folder(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def test_a_lock_is_refused_or_waited_for(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    root = Path(__file__).parents[3]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=rf"in use by another run \(process {holder.pid}\)"), lock_folder(tmp_path):
            pass
        waiting = subprocess.Popen(
            [sys.executable, "-c", HOLD.replace("1])", "1]), wait=True"), str(tmp_path)],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=root,
        )
        assert waiting.stderr is not None
        assert waiting.stderr.readline().decode() == f"waiting for process {holder.pid}, which is writing {tmp_path}\n"
        holder.communicate()
    assert waiting.wait(30) == 0
    waiting.stderr.close()


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SPEECH_DISTILLER_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder("synthesis") == Path("/caches/speech-distiller/synthesis")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("superb") == tmp_path / ".cache/speech-distiller/superb"
    with monkeypatch.context() as homeless:  # a user id without an entry, as containers have
        homeless.setattr(Path, "expanduser", lambda path: (_ for _ in ()).throw(RuntimeError("no home")))
        homeless.setattr("tempfile.tempdir", str(tmp_path))
        assert cache_folder("superb") == tmp_path / f"speech-distiller-{os.getuid()}" / "superb"
    monkeypatch.setenv("SPEECH_DISTILLER_CACHE", str(tmp_path))
    assert cache_folder("synthesis") == tmp_path / "synthesis"
