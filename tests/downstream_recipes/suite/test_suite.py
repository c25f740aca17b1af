"""The suite and its command: the table, exit codes, what is repeated and what is refused."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from distiller.common.command import Failed
from downstream_recipes import superb
from downstream_recipes.suite.procedures import run_task
from downstream_recipes.suite.report import write_report
from downstream_recipes.suite.suite import Suite, keep, kept_result
from downstream_recipes.tasks.recipes import read_corpora
from downstream_recipes.tasks.tasks import TASKS
from tests.downstream_recipes.pretender import line
from upstream.errors import UserError


def written(file: Path, corpora: Mapping, without: str) -> Path:
    """A corpora file without one of the keys."""
    file.write_text(json.dumps({key: value for key, value in corpora.items() if key != without}))
    return file


def test_the_whole_table_is_filled(suite, miniature, capsys):
    assert superb.main(line(suite, miniature, "--submission")) == 0
    out = capsys.readouterr().out
    rows = (suite.output / "scores.csv").read_text().splitlines()
    assert [row.split(",")[1] for row in rows[1:]] == [
        "pr",
        "asr",
        "ks",
        "qbe",
        "sid",
        "asv",
        "sd",
        "ic",
        "sf",
        "sf",
        "er",
    ]
    assert "| starhubert (out) | 0.60 | 25.00 | 30.00 | 10.00 | 1.0000 |" in " ".join(out.split())
    assert "HuBERT Base" not in out  # miniature corpora: no published rows
    assert "Overall" not in out
    assert "ASV: the best of 2 checkpoints on the test trials (step 20), as SUPERB does." in out
    assert "QbE: state 1 of 3, the best on dev" in out
    names = {path.name for path in suite.output.iterdir() if path.is_file()}
    assert names >= {"scores.csv", "table.md", "table.tex", "table.html", "tasks.png", "layers.png", "model.json"}
    assert (suite.output / "submission" / "predict.zip").exists()
    assert (suite.output / "submission" / "predict" / "er_fold3_public" / "predict.txt").read_text() == "3"


def test_finished_tasks_are_not_done_again(suite, miniature, pretender, capsys):
    assert superb.main(line(suite, miniature, "--tasks", "pr,ic")) == 0
    table = (suite.output / "table.md").read_text()
    before = len(pretender.calls)
    assert superb.main(line(suite, miniature, "--tasks", "pr,ic")) == 0
    assert len(pretender.calls) == before
    assert table in capsys.readouterr().out
    assert superb.main(line(suite, miniature, "--tasks", "pr", "--overwrite")) == 0
    assert len(pretender.calls) == before + 2


def test_a_failed_task_keeps_the_finished_ones_and_is_tried_again(suite, miniature, pretender, capsys):
    pretender.failing = {"ks"}
    assert superb.main(line(suite, miniature, "--tasks", "pr,ks,ic")) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: ks: RuntimeError: ks broke"
    pretender.failing, pretender.calls = set(), []
    assert superb.main(line(suite, miniature, "--tasks", "pr,ks,ic")) == 0
    assert {call["downstream"] for call in pretender.calls if "downstream" in call} == {"ks"}


def test_an_output_of_another_checkpoint_is_refused(suite, miniature, capsys):
    assert superb.main(line(suite, miniature, "--tasks", "pr")) == 0
    Path(suite.checkpoint, "model.safetensors").write_bytes(b"other weights")
    assert superb.main(line(suite, miniature, "--tasks", "pr,ic")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "made with checkpoint" in error
    assert "--overwrite" in error
    assert not (suite.output / "ic").exists()


def test_an_unfinished_task_of_another_checkpoint_is_refused_too(suite, miniature, pretender, monkeypatch, capsys):
    def fail(*args):
        raise Failed("a full disk")

    with monkeypatch.context() as patch:
        patch.setattr(pretender, "evaluate", fail)
        assert superb.main(line(suite, miniature, "--tasks", "pr")) == 1
    Path(suite.checkpoint, "model.safetensors").write_bytes(b"other weights")
    assert superb.main(line(suite, miniature, "--tasks", "pr")) == 2
    assert "made with checkpoint" in capsys.readouterr().err
    assert superb.main(line(suite, miniature, "--tasks", "pr", "--overwrite")) == 0


def test_a_row_is_of_one_model(suite, miniature, pretender, tmp_path, capsys):
    """Whatever tasks are chosen, and none at all: every kept one would be in the row."""
    assert superb.main(line(suite, miniature, "--tasks", "ic")) == 0
    real = written(tmp_path / "real.yaml", suite.corpora, "miniature")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.safetensors").write_bytes(b"other weights")
    for change, message in (
        (["-k", str(tmp_path / "other")], f"ic was made with checkpoint {suite.checkpoint}"),
        (["-u", "dphubert"], "ic was made with upstream starhubert, not dphubert"),
        (["-g", "states=all"], "ic was made with model_config None, not states=all"),
        (["--corpora", str(real)], "ic was made with kind of corpora miniature, not real"),
    ):
        for tasks in (["--tasks", "qbe"], ["--tasks", ","], ["--tasks", "qbe", "--overwrite"]):
            calls = len(pretender.calls)
            assert superb.main([*line(suite, miniature), *change, *tasks]) == 2
            error = capsys.readouterr().err.splitlines()[-1]
            assert message in error
            assert error.endswith("another --output, or add --tasks ic --overwrite to repeat these tasks")
            assert len(pretender.calls) == calls
    assert superb.main(line(suite, miniature, "--tasks", "ic,qbe")) == 0
    other = [*line(suite, miniature), "-k", str(tmp_path / "other"), "--overwrite", "--tasks"]
    assert superb.main([*other, "qbe"]) == 2  # what it advises is enough
    assert "--tasks qbe,ic --overwrite" in capsys.readouterr().err
    assert superb.main([*other, "qbe,ic"]) == 0


def test_overwrite_removes_nothing_when_the_rest_of_the_command_is_wrong(suite, miniature, monkeypatch, capsys):
    assert superb.main(line(suite, miniature, "--tasks", "ic")) == 0
    assert superb.main(line(suite, miniature, "--tasks", "ic", "--overwrite", "--gpus", "0,0")) == 2
    for path in suite.output.glob("upstream-*.json"):
        path.unlink()
    monkeypatch.setattr(Suite, "_describe", lambda suite: (_ for _ in ()).throw(UserError("cannot be opened")))
    assert superb.main(line(suite, miniature, "--tasks", "ic", "--overwrite")) == 2
    assert kept_result(suite.output, TASKS["ic"]) is not None


def test_an_upstream_that_cannot_be_opened_stops_everything_at_once(suite, miniature, pretender, monkeypatch, capsys):
    def describe(suite):
        raise UserError("nowhere: no such checkpoint")

    monkeypatch.setattr(Suite, "_describe", describe)
    assert superb.main(line(suite, miniature)) == 2
    assert capsys.readouterr().err == "error: nowhere: no such checkpoint\n"
    assert pretender.calls == []


def test_rows_of_other_outputs_stand_beside_ours(suite, miniature, tmp_path, pretender, capsys):
    assert superb.main(line(suite, miniature, "--tasks", "pr")) == 0
    other = tmp_path / "teacher"
    given = line(suite, miniature, "--tasks", "pr", "--beside", str(suite.output))
    assert superb.main([*given, "--output", str(other)]) == 0
    rows = [row for row in capsys.readouterr().out.splitlines() if row.startswith("| starhubert")]
    assert [row.split("|")[1].strip() for row in rows[-2:]] == ["starhubert (out)", "starhubert (teacher)"]
    pretender.calls = []  # a wrong one is said before anything is trained
    assert superb.main([*given, "--tasks", "ic", "--beside", str(tmp_path)]) == 2
    complaint = f"error: --beside {tmp_path} is not an output of superb.py with a table"
    assert capsys.readouterr().err.splitlines() == [complaint]
    real = ["--corpora", str(written(tmp_path / "real.yaml", suite.corpora, "miniature"))]
    assert superb.main([*given, *real, "--output", str(tmp_path / "real")]) == 2
    assert capsys.readouterr().err.endswith("has scores of miniature corpora, but this table is of real ones\n")
    assert pretender.calls == []


def test_real_corpora_have_overall_scores_and_published_rows(suite, tmp_path):
    corpora = written(tmp_path / "real.yaml", suite.corpora, "miniature")
    real = Suite("starhubert", suite.checkpoint, None, corpora, tmp_path / "real", "cpu")
    with pytest.raises(UserError, match="has no finished task"):
        write_report(real)
    for task in [task for task in TASKS.values() if not task.extra]:
        keep(real, task, run_task(real, task))
    assert kept_result(real.output, TASKS["sf"]).scores[1].metric == "cer"
    text = write_report(real)
    assert "HuBERT Base (LS 960)" in text
    assert "Overall ↑" in text
    assert "overall,score" in (real.output / "scores.csv").read_text()
    assert (real.output / "parameters.png").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--tasks", "prr"], "--tasks is 'prr', but it must be one of pr, asr, ks"),
        (["--corpora", "absent.yaml"], "absent.yaml cannot be read: No such file"),
    ],
)
def test_wrong_arguments_are_one_line(suite, miniature, capsys, change, message):
    assert superb.main([*line(suite, miniature), *change]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_a_missing_corpus_fails_its_task_only(suite, miniature, tmp_path, capsys):
    corpora = read_corpora(miniature)
    file = tmp_path / "corpora.yaml"
    file.write_text(json.dumps({**{key: corpora[key] for key in ("fluent_commands", "workers")}, "snips": "absent"}))
    assert superb.main([*line(suite, miniature, "--tasks", "sf,ic"), "--corpora", str(file)]) == 1
    assert re.search(r"error: sf: sf needs the corpus 'snips': .*absent does not exist", capsys.readouterr().err)
    assert kept_result(suite.output, TASKS["ic"]) is not None


def test_a_mistyped_corpus_can_be_mended(suite, miniature, pretender, tmp_path, capsys):
    file = tmp_path / "corpora.yaml"

    def run(folder: str) -> int:
        file.write_text(json.dumps({**suite.corpora, "fluent_commands": folder}))
        return superb.main([*line(suite, miniature, "--tasks", "ks,ic"), "--corpora", str(file)])

    assert run("/data/typo") == 1
    pretender.calls = []
    assert run(suite.corpora["fluent_commands"]) == 0
    assert {call["downstream"] for call in pretender.calls if "downstream" in call} == {"ic"}
    assert run("/data/typo") == 2  # what has been made is of the corpus that it was made of
    assert "ic was made with corpora" in capsys.readouterr().err.splitlines()[-1]
