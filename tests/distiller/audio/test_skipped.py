"""skipped.csv, and the share that stops a run."""

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distiller.audio.batch import Batch, StepBatch
from distiller.audio.skipped import SkippedLog, append_skipped, check_share, read_skipped
from distiller.common.files import lock_folder
from upstream.errors import UserError


def window(used, skipped=()):
    ids = [f"u{i}" for i in range(used)]
    return StepBatch([Batch(torch.zeros(used, 400), torch.full((used,), 400), ids, ids, list(skipped))], 0, 0)


def test_each_path_is_listed_once(tmp_path):
    path = tmp_path / "exp/skipped.csv"
    append_skipped(path, [("a.wav", "first reason"), ('odd, "name"\n.wav', "b")])
    append_skipped(path, [("c.wav", "c"), ("a.wav", "another reason"), ("c.wav", "again")])
    assert read_skipped(path) == [("a.wav", "first reason"), ('odd, "name"\n.wav', "b"), ("c.wav", "again")]
    assert path.read_text().splitlines()[0] == "path,reason"


def test_nothing_skipped_nothing_written(tmp_path):
    log = SkippedLog(tmp_path / "skipped.csv", 0.0)
    log.add(window(3))
    assert (log.seen, log.skipped, log.count) == (3, 0, 0)
    assert list(tmp_path.iterdir()) == []


def _append(path, rank):
    for i in range(10):
        append_skipped(path, [(f"{rank}-{i}", "r"), ("shared", "r")])


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
    log.add(window(9, [("a", "r")]))  # 1 of 10, counted as 1 of 100
    log.add(window(9, [("b", "r")]))  # 2 of 100 is not above 2 %
    with pytest.raises(UserError) as error:
        log.add(window(9, [("c", "r")]))
    assert str(error.value) == (
        "3 of 30 utterances (10.0%) could not be used, more than corpus.max_skipped allows (2.0%); "
        f"{tmp_path / 'skipped.csv'} says why"
    )
    assert log.count == 3


def test_more_than_the_grace_counts_as_it_is():
    check_share(4, 200, 0.02, "")
    with pytest.raises(UserError, match=r"5 of 200"):
        check_share(5, 200, 0.02, "")
    with pytest.raises(UserError, match=r"1 of 1 "):
        check_share(1, 1, 0.0, "")


def test_what_opening_the_corpus_set_aside_is_listed_but_not_counted_again(tmp_path):
    log = SkippedLog(tmp_path / "skipped.csv", 0.0, [("header.wav", "r")])
    log.add(window(2))
    assert (log.count, log.skipped) == (1, 0)


def test_a_batch_that_nothing_could_replace(tmp_path):
    log = SkippedLog(tmp_path / "skipped.csv", 1.0)
    with pytest.raises(UserError, match=r"a whole batch .* the last of them b.wav \(why\); \S+skipped.csv lists them"):
        log.add(window(0, [("a.wav", "r"), ("b.wav", "why")]))


def test_counts_go_into_checkpoints(tmp_path):
    log = SkippedLog(tmp_path / "skipped.csv", 0.5)
    log.add(window(9, [("a", "r")]))
    again = SkippedLog(tmp_path / "skipped.csv", 0.5)
    again.load_state_dict(log.state_dict())
    assert (again.seen, again.skipped, again.count) == (10, 1, 1)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file cannot be written: "):
        append_skipped(tmp_path / "file/skipped.csv", [("a", "r")])


def test_listing_a_file_leaves_the_run_its_lock(tmp_path: Path) -> None:
    """A POSIX lock is gone as soon as its process closes any handle of the file."""
    claim = "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
    claim += "from distiller.common.files import lock_folder\nwith lock_folder(Path(sys.argv[2])): pass"
    command = [sys.executable, "-c", claim, str(Path(__file__).parents[3]), str(tmp_path)]
    with lock_folder(tmp_path):
        append_skipped(tmp_path / "skipped.csv", [("a.wav", "damaged")])
        second = subprocess.run(command, capture_output=True, text=True)
    assert "UserError" in second.stderr
    assert subprocess.run(command).returncode == 0
