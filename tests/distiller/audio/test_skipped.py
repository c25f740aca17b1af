"""skipped.csv, and the share that stops a run."""

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest

from distiller.audio.skipped import Skipped, SkippedLog, append_skipped, check_share, read_skipped, skipped_count
from distiller.common.files import lock_folder
from upstream.errors import UserError


def rows(*pairs):
    return [Skipped(*pair) for pair in pairs]


def test_each_path_is_listed_once(tmp_path):
    path = tmp_path / "exp/skipped.csv"
    append_skipped(path, rows(("a.wav", "first reason"), ('odd, "name"\n.wav', "b")))
    append_skipped(path, rows(("c.wav", "c"), ("a.wav", "another reason"), ("c.wav", "again")))
    assert read_skipped(path) == [("a.wav", "first reason"), ('odd, "name"\n.wav', "b"), ("c.wav", "again")]
    assert path.read_text().splitlines()[0] == "path,reason"


def test_nothing_skipped_nothing_written(tmp_path):
    log = SkippedLog(tmp_path / "skipped.csv", 0.0)
    log.add([], 3)
    assert (log.seen, log.skipped, skipped_count(log.path)) == (3, 0, 0)
    assert list(tmp_path.iterdir()) == []


def _append(path, rank):
    for i in range(10):
        append_skipped(path, rows((f"{rank}-{i}", "r"), ("shared", "r")))


def test_ranks_write_at_the_same_time(tmp_path):
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_append, args=(tmp_path / "skipped.csv", rank)) for rank in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    paths = [row.path for row in read_skipped(tmp_path / "skipped.csv")]
    assert sorted(paths) == sorted(["shared"] + [f"{rank}-{i}" for rank in range(4) for i in range(10)])


def test_the_run_stops_at_the_step_that_exceeds_the_share(tmp_path):
    log = SkippedLog(tmp_path / "skipped.csv", 0.02)
    log.add(rows(("a", "r")), 9)  # 1 of 10, counted as 1 of 100
    log.add(rows(("b", "r")), 9)  # 2 of 100 is not above 2 %
    with pytest.raises(UserError) as error:
        log.add(rows(("c", "r")), 9)
    assert str(error.value) == (
        "3 of 30 utterances (10.0%) could not be used, more than corpus.max_skipped allows (2.0%); "
        f"{tmp_path / 'skipped.csv'} says why"
    )
    assert skipped_count(log.path) == 3


def test_more_than_the_grace_counts_as_it_is():
    check_share(4, 200, 0.02, "")  # no error
    with pytest.raises(UserError, match=r"5 of 200"):
        check_share(5, 200, 0.02, "")
    with pytest.raises(UserError, match=r"1 of 1 "):
        check_share(1, 1, 0.0, "")


def test_what_opening_the_corpus_set_aside_is_listed_but_not_counted(tmp_path):
    log = SkippedLog(tmp_path / "skipped.csv", 0.0)
    log.record(rows(("header.wav", "r")))
    log.add([], 2)
    assert (skipped_count(log.path), log.skipped) == (1, 0)


def test_counts_go_into_checkpoints(tmp_path):
    log = SkippedLog(tmp_path / "skipped.csv", 0.5)
    log.add(rows(("a", "r")), 9)
    again = SkippedLog(tmp_path / "skipped.csv", 0.5)
    again.load_state_dict(log.state_dict())
    assert (again.seen, again.skipped) == (10, 1)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file cannot be written: "):
        append_skipped(tmp_path / "file/skipped.csv", rows(("a", "r")))


def test_listing_a_file_leaves_the_run_its_lock(tmp_path: Path) -> None:
    """A POSIX lock is gone as soon as its process closes any handle of the file."""
    claim = "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
    claim += "from distiller.common.files import lock_folder\nwith lock_folder(Path(sys.argv[2])): pass"
    command = [sys.executable, "-c", claim, str(Path(__file__).parents[3]), str(tmp_path)]
    with lock_folder(tmp_path):
        append_skipped(tmp_path / "skipped.csv", rows(("a.wav", "damaged")))
        second = subprocess.run(command, capture_output=True, text=True)
    assert "UserError" in second.stderr
    assert subprocess.run(command).returncode == 0
