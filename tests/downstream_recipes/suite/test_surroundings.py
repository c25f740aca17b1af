"""A suite on a machine where outputs, locks, disks or corpora fail: one line says so, no finished work is lost."""

import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from distiller.common import files
from downstream_recipes import superb
from downstream_recipes.suite import suite as suite_module
from downstream_recipes.suite.suite import kept_result
from downstream_recipes.tasks.recipes import read_corpora
from downstream_recipes.tasks.tasks import TASKS
from tests.downstream_recipes.pretender import line

DESCRIBE = suite_module.Suite._describe


def complaint_of(given: list[str], capsys) -> str:
    """The one line of a suite that does nothing."""
    assert superb.main(given) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_an_output_that_cannot_be_one_is_one_line(suite, miniature, tmp_path, pretender, capsys):
    (tmp_path / "file").write_text("mine")
    given = [*line(suite, miniature, "--tasks", "pr"), "--output"]
    assert f"cannot be written: {tmp_path / 'file'} is a file" in complaint_of([*given, f"{tmp_path}/file"], capsys)
    assert f"{tmp_path / 'file'} is a file" in complaint_of([*given, f"{tmp_path}/file/below"], capsys)
    assert (tmp_path / "file").read_text() == "mine"
    assert re.match(r"error: /proc/superb cannot be written: ", complaint_of([*given, "/proc/superb"], capsys))
    assert pretender.calls == []


HOLD = """
import sys, time; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from distiller.common.files import lock_folder
with lock_folder(Path(sys.argv[2]), sys.argv[3]):
    print("held", flush=True); time.sleep(600)
"""


@pytest.fixture
def holder(suite):
    """Another process with a lock of the suite's output."""
    processes = []

    def hold(lock: str) -> int:
        line = [sys.executable, "-c", HOLD, str(Path(superb.__file__).parents[1]), str(suite.output), lock]
        processes.append(subprocess.Popen(line, stdout=subprocess.PIPE, text=True))
        assert processes[-1].stdout.readline() == "held\n"
        return processes[-1].pid

    yield hold
    for process in processes:
        process.kill()
        process.communicate()


def test_a_second_suite_in_an_output_is_refused(suite, miniature, pretender, holder, capsys):
    process = holder(".lock")
    wanted = f"error: {suite.output} is in use by another run (process {process}); wait for it, or choose another"
    assert complaint_of(line(suite, miniature, "--tasks", "pr"), capsys).startswith(wanted)
    assert pretender.calls == []


def test_a_task_that_an_orphan_still_works_at_is_left_alone(suite, miniature, pretender, holder, capsys):
    process = holder(".pr.lock")  # what kill -9 of a suite with --gpus leaves
    assert superb.main(line(suite, miniature, "--tasks", "pr,ic")) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: pr: {suite.output} is in use by another run (process {process})")
    assert not (suite.output / "pr.json").exists()
    assert kept_result(suite.output, TASKS["ic"]) is not None


def test_a_full_disk_is_one_line_and_loses_nothing(suite, miniature, pretender, monkeypatch, capsys):
    assert superb.main(line(suite, miniature, "--tasks", "ic")) == 0
    table, kept = (suite.output / "table.md").read_text(), (suite.output / "ic.json").read_bytes()
    capsys.readouterr()

    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "atomic_file", full)
    assert superb.main(line(suite, miniature, "--tasks", "ic,pr")) == 2
    said = capsys.readouterr().err.splitlines()
    assert f"[2/2] pr: {suite.output}/pr.json cannot be written: No space left on device" in said
    assert re.fullmatch(rf"error: {suite.output}/\S+ cannot be written: No space left on device", said[-1])  # the table
    assert ((suite.output / "table.md").read_text(), (suite.output / "ic.json").read_bytes()) == (table, kept)


def test_a_corpus_that_disappears_between_tasks_fails_those_that_need_it(
    suite, miniature, pretender, tmp_path, monkeypatch, capsys
):
    moved = tmp_path / "corpora"
    shutil.copytree(miniature.parent, moved)
    pretender.corpora = read_corpora(moved / "corpora.yaml")
    evaluate = pretender.evaluate

    def and_remove(task, folder, given, rate):
        printed = evaluate(task, folder, given, rate)
        for name in ("snips", "libri2mix_diarization/test/rttm"):
            if task in ("ic", "sd"):
                path = moved / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return printed

    monkeypatch.setattr(pretender, "evaluate", and_remove)
    assert superb.main(line(suite, moved / "corpora.yaml", "--tasks", "sd,ic,sf,ks")) == 1
    said = capsys.readouterr().err.splitlines()[-2:]
    assert said == [
        f"error: sd: {moved}/libri2mix_diarization/test/rttm cannot be read: No such file or directory",
        f"error: sf: sf needs the corpus 'snips': {moved}/snips does not exist",
    ]
    assert all(kept_result(suite.output, TASKS[code]) is not None for code in ("ic", "ks"))


@pytest.mark.parametrize(
    "mistake",
    [
        ["--tasks", "prr"],
        ["--taks", "pr"],
        ["--gpus", "0,0"],
        ["--feature-cache", "-1"],
        ["--device", "gpu"],
        ["--corpora", "absent.yaml"],
        ["--beside", "absent"],
    ],
)
def test_a_refused_command_leaves_no_folder(suite, miniature, pretender, capsys, mistake):
    complaint_of([*line(suite, miniature), *mistake], capsys)
    assert not suite.output.exists()
    assert pretender.calls == []


def test_an_upstream_that_does_not_exist_leaves_no_folder(suite, miniature, monkeypatch, capsys):
    pytest.importorskip("s3prl")
    monkeypatch.setattr(suite_module.Suite, "_describe", DESCRIBE)
    complaint = complaint_of([*line(suite, miniature), "-u", "starhuberd"], capsys)
    assert complaint == "error: -u starhuberd does not exist; did you mean starhubert?\n"
    assert not suite.output.exists()


def test_paths_may_be_no_utf8_and_look_like_references(suite, miniature, tmp_path, pretender, capsys):
    odd = Path(os.fsdecode(b"\xff=${workers}${"))
    shutil.copytree(miniature.parent / "fluent_commands", tmp_path / odd)
    (tmp_path / "corpora.yaml").write_bytes(b'fluent_commands: "here/${data}"\n')
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "${data}").symlink_to(tmp_path / odd)
    output = str(tmp_path / odd / "out")
    given = [*line(suite, tmp_path / "corpora.yaml", "--tasks", "ic"), "--output", output]
    assert superb.main(given) == 0
    assert "| starhubert (out) " in capsys.readouterr().out
    recipe = yaml.safe_load((Path(output) / "ic" / "ic.yaml").read_text())
    assert recipe["downstream_expert"]["datarc"]["file_path"] == str(tmp_path / odd)
    rows = (Path(output) / "scores.csv").read_bytes()
    assert os.fsencode(f"{output}/ic/dev-best.ckpt") in rows
    assert superb.main([*given, "--output", str(tmp_path / odd)]) == 0  # its name is in the table and the figures
    assert "| starhubert (?=${workers}${) " in capsys.readouterr().out
