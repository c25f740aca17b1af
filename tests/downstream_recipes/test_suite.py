import argparse
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from downstream_recipes import suite as suite_module
from downstream_recipes import suite_report, suite_tasks, superb
from downstream_recipes.recipes import read_corpora
from downstream_recipes.suite import Score, Suite, TaskFailed, finished, keep, read_state, stage
from downstream_recipes.suite_report import write_report, write_submission_of
from downstream_recipes.suite_tasks import newest_checkpoint, run_task
from downstream_recipes.tasks import TASKS
from upstream.errors import UserError


class Pretender:
    """s3prl as far as the suite sees it: reads a command line, prints scores, leaves checkpoints and predictions."""

    def __init__(self) -> None:
        self.calls: list[dict[str, str]] = []
        self.failing: set[str] = set()

    def __call__(self, suite: Suite, arguments, log: Path) -> str:
        given = dict(zip(arguments[::2], arguments[1::2], strict=True))
        self.calls.append(given)
        folder = Path(given["-p"]) if "-p" in given else Path(given["-e"]).parent
        task = next(code for code in [*folder.parts[::-1]] if code in TASKS)
        if task in self.failing:
            raise TaskFailed(f"RuntimeError: {task} broke")
        rate = re.search(r"lr-(\S+?)$", str(folder.parent if folder.name.startswith("fold") else folder))
        printed = getattr(self, given["-m"])(task, folder, given, float(rate[1]) if rate else 1e-3)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            file.write(printed)
        return printed

    def train(self, task: str, folder: Path, given: dict[str, str], rate: float) -> str:
        steps = (20, 40) if task == "asv" else (40,)
        names = [f"states-{step}.ckpt" for step in steps]
        names += [suite_tasks.BEST.get(task, "dev-best.ckpt")] if task != "asv" else []
        states = {"Args": argparse.Namespace(), "Featurizer": {"weights": torch.zeros(3)}, "Step": 40}
        for name in names:
            torch.save(states, folder / name)
        (folder / "frame_shift").write_text("320\n")
        closeness = 1 - abs(np.log10(rate) + 3) / 10  # the best learning rate is 1e-3
        split = "dev-clean" if task == "asr" else "dev"
        return f"{split} acc: {closeness}\n{split} per: {1 - closeness}\n{split} wer: {100 - 100 * closeness}\n" + (
            f"{split} slot_type_f1: {closeness}\nmode {split} acc {closeness} der 0\n"
        )

    def evaluate(self, task: str, folder: Path, given: dict[str, str], rate: float) -> str:
        split = given["-t"]
        if task == "qbe":
            self.search(folder, good=given["-l"] == "1")
        if task == "sd":
            (folder / "scoring" / "predictions").mkdir(parents=True)
            rows = (Path(self.corpora["libri2mix_diarization"]) / "test" / "rttm").read_text().splitlines()
            for recording in {line.split()[1] for line in rows}:
                with h5py.File(folder / "scoring" / "predictions" / f"{recording}.h5", "w") as file:
                    file["T_hat"] = np.full((100, 2), 0.45)
        fold = given["-e"].split("fold")[1][0] if "fold" in given.get("-e", "") else "1"
        step = 20 if "states-20" in given.get("-e", "") else 40
        target = Path(given["-o"].removeprefix("args.expdir=")) if "-o" in given else folder
        target.mkdir(exist_ok=True)
        for name in ("test-hyp.ark", "test-clean-noLM-hyp.ark", "test_predict.txt", "test_predict.csv"):
            (target / name).write_text(task)
        (target / f"test_fold{fold}_predict.txt").write_text(fold)
        return (
            f"{split} acc: 0.{fold}\n{split} per: 0.25\n{split} wer: 30.0\n{split} slot_type_f1: 0.5\n"
            f"{split} slot_value_cer: 0.6\nmode {split} acc 0.9 der 0.1\n"
            f"sv-voxceleb1/{split}-EER: {0.2 if step == 20 else 0.3}\n"
        )

    def search(self, folder: Path, good: bool) -> None:
        split = "dev" if folder.name.startswith("dev") else "eval"
        scoring = Path(self.corpora["quesst14"]) / "scoring"
        truth = (scoring / f"groundtruth_quesst14_{split}" / f"quesst14_{split}.rttm").read_text().splitlines()
        score, terms = (1.0 if good else -20.0), ""
        for row in truth:
            _, document, *_, query, _, _, _ = row.split()
            terms += (
                f'<detected_termlist termid="{query}"><term file="{document}" score="{score}"/></detected_termlist>'
            )
        (folder / "benchmark.stdlist.xml").write_text(f"<stdlist>{terms}</stdlist>")


@pytest.fixture
def pretender(monkeypatch) -> Pretender:
    pretender = Pretender()
    monkeypatch.setattr(Suite, "run", lambda suite, arguments, log: pretender(suite, arguments, log))
    monkeypatch.setattr(Suite, "_describe", lambda suite: {"states": 3, "parameters": 603_136})
    return pretender


@pytest.fixture
def suite(miniature, tmp_path, pretender) -> Suite:
    pretender.corpora = read_corpora(miniature)
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "model.safetensors").write_bytes(b"weights")
    student = str(tmp_path / "student")
    return Suite("starhubert", student, None, pretender.corpora, tmp_path / "out", "cpu")


def line(suite: Suite, miniature: Path, *more: str) -> list[str]:
    given = ["-u", "starhubert", "-k", str(suite.checkpoint), "--corpora", str(miniature), "--device", "cpu"]
    return [*given, "--output", str(suite.output), *more]


def values(scores: list[Score]) -> dict[str, float]:
    return {f"{score.task} {score.metric}": score.value for score in scores}


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
    assert "| starhubert (out) | 0.60 | 25.00 | 30.00 | 10.00 | 1.0000 |" in out
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
    assert capsys.readouterr().err.splitlines()[-1] == "superb.py: ks: RuntimeError: ks broke"
    pretender.failing, pretender.calls = set(), []
    assert superb.main(line(suite, miniature, "--tasks", "pr,ks,ic")) == 0
    assert {call["-d"] for call in pretender.calls if "-d" in call} == {"ks"}


def test_an_output_of_another_checkpoint_is_refused(suite, miniature, capsys):
    assert superb.main(line(suite, miniature, "--tasks", "pr")) == 0
    Path(suite.checkpoint, "model.safetensors").write_bytes(b"other weights")
    assert superb.main(line(suite, miniature, "--tasks", "pr,ic")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "made with checkpoint" in error
    assert "--overwrite" in error
    assert not (suite.output / "ic").exists()


def test_an_unfinished_task_of_another_checkpoint_is_refused_too(suite, miniature, pretender, capsys):
    pretender.failing = {"pr"}
    assert superb.main(line(suite, miniature, "--tasks", "pr")) == 1
    Path(suite.checkpoint, "model.safetensors").write_bytes(b"other weights")
    assert superb.main(line(suite, miniature, "--tasks", "pr")) == 2
    assert "made with checkpoint" in capsys.readouterr().err
    pretender.failing = set()
    assert superb.main(line(suite, miniature, "--tasks", "pr", "--overwrite")) == 0


def test_an_upstream_that_cannot_be_opened_stops_everything_at_once(suite, miniature, pretender, monkeypatch, capsys):
    def describe(suite):
        raise UserError("nowhere: no such checkpoint")

    monkeypatch.setattr(Suite, "_describe", describe)
    assert superb.main(line(suite, miniature)) == 2
    assert capsys.readouterr().err == "superb.py: nowhere: no such checkpoint\n"
    assert pretender.calls == []


def test_an_interrupted_task_goes_on_where_it_stopped(suite, pretender, monkeypatch):
    task = TASKS["ic"]
    evaluate = pretender.evaluate
    monkeypatch.setattr(pretender, "evaluate", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_task(suite, task)
    monkeypatch.setattr(pretender, "evaluate", evaluate)
    pretender.calls = []
    scores, _ = run_task(suite, task)
    assert [call["-m"] for call in pretender.calls] == ["evaluate"]
    assert values(scores) == {"ic acc": 10.0}


def test_an_interrupted_training_continues_or_starts_again(suite, pretender):
    folder = suite.output / "ic"
    folder.mkdir(parents=True)
    (folder / "train.log").write_text("dev acc: 0.9999\n")
    run_task(suite, TASKS["ic"])
    assert pretender.calls[0]["-d"] == "ic"  # nothing to continue from: from scratch, its old output gone
    assert "0.9999" not in (folder / "train.log").read_text()
    (folder / "train.json").unlink()
    (folder / "states-60.ckpt").write_bytes((folder / "states-40.ckpt").read_bytes()[:200])  # cut short by the kill
    run_task(suite, TASKS["ic"])
    assert pretender.calls[-1] == {"-m": "train", "-e": str(folder / "states-40.ckpt")}
    assert not (folder / "states-60.ckpt").exists()


def test_without_a_best_checkpoint_the_newest_is_tested(suite, pretender):
    folder = suite.output / "pr"
    folder.mkdir(parents=True)
    for step in (9, 100, 20):
        torch.save({"Step": step}, folder / f"states-{step}.ckpt")
    assert newest_checkpoint(folder) == folder / "states-100.ckpt"
    assert suite_tasks.best_checkpoint(TASKS["pr"], folder) == folder / "states-100.ckpt"
    torch.save({"Step": 1}, folder / "dev-best.ckpt")
    assert suite_tasks.best_checkpoint(TASKS["pr"], folder) == folder / "dev-best.ckpt"
    with pytest.raises(UserError, match="kept no checkpoint"):
        suite_tasks.best_checkpoint(TASKS["pr"], suite.output / "sid")


def test_emotion_is_the_mean_of_five_folds(suite, pretender):
    scores, note = run_task(suite, TASKS["er"])
    assert values(scores) == {"er acc": pytest.approx(30.0)}
    assert note == "ER: folds 10.0, 20.0, 30.0, 40.0, 50.0."
    assert [call["-v"] for call in pretender.calls if call["-m"] == "train"] == [f"fold{fold}" for fold in range(1, 6)]


def test_query_by_example_chooses_its_state_on_dev(suite, pretender):
    scores, _ = run_task(suite, TASKS["qbe"])
    assert [(call["-t"], call["-l"]) for call in pretender.calls] == [
        ("dev", "0"),
        ("dev", "1"),
        ("dev", "2"),
        ("test", "1"),
    ]
    assert (scores[0].value, scores[0].unit, scores[0].split) == (1.0, "fraction", "eval")


def test_diarization_reports_the_best_of_the_sweep(suite):
    scores, note = run_task(suite, TASKS["sd"])
    assert scores[0].metric == "der"
    assert 0 < scores[0].value < 100  # everything is speech of both below .45; nothing is above, a DER of 100
    assert "threshold 0.3" in note


def test_the_learning_rate_is_chosen_on_dev(suite, pretender):
    scores, note = run_task(replace(suite, lr_search=True), TASKS["sid"])
    assert note == "Learning rate 1e-03, the best of 7 on dev."
    rates = [yaml_rate(call["-c"]) for call in pretender.calls if call["-m"] == "train"]
    assert rates == pytest.approx([10.0**-power for power in range(1, 8)])
    tested = [call for call in pretender.calls if call["-m"] == "evaluate"]
    assert [Path(call["-e"]).parent.name for call in tested] == ["lr-1e-03"]
    assert len(scores) == 1


def test_a_searched_score_is_not_taken_for_one_of_the_recipes_rate(suite, miniature, pretender, capsys):
    assert superb.main(line(suite, miniature, "--tasks", "ic,qbe")) == 0
    assert superb.main(line(suite, miniature, "--tasks", "ic,qbe", "--lr-search")) == 2
    assert "made with learning rate of the recipe, not searched" in capsys.readouterr().err
    pretender.calls = []
    assert superb.main(line(suite, miniature, "--tasks", "qbe", "--lr-search")) == 0  # nothing of it is trained
    assert pretender.calls == []


def test_a_search_goes_on_where_it_was_killed(suite, pretender):
    searching, task = replace(suite, lr_search=True), TASKS["sid"]
    train = pretender.train

    def killed_at_the_fourth(task, folder, given, rate):
        if folder.name == "lr-1e-04":
            raise KeyboardInterrupt
        return train(task, folder, given, rate)

    pretender.train = killed_at_the_fourth
    with pytest.raises(KeyboardInterrupt):
        run_task(searching, task)
    pretender.train, pretender.calls = train, []
    _, note = run_task(searching, task)
    trained = [Path(call["-p"]).name for call in pretender.calls if call["-m"] == "train"]
    assert trained == ["lr-1e-04", "lr-1e-05", "lr-1e-06", "lr-1e-07"]
    assert note == "Learning rate 1e-03, the best of 7 on dev."


def yaml_rate(path: str) -> float:
    return float(re.search(r"^  lr: (\S+)$", Path(path).read_text(), re.M)[1])


def test_speaker_verification_searches_on_its_trials(suite, pretender):
    _, note = run_task(replace(suite, lr_search=True), TASKS["asv"])
    assert "the best of 7 on the test trials, as SUPERB does." in note
    assert len([call for call in pretender.calls if call["-m"] == "evaluate"]) == 14


def test_stages_are_kept(tmp_path):
    calls = []

    def work():
        calls.append(1)
        return {"value": 3}

    first = stage(tmp_path / "a" / "stage.json", work)
    assert first == stage(tmp_path / "a" / "stage.json", work)
    assert first["value"] == 3
    assert first["seconds"] >= 0
    assert calls == [1]


def test_rows_of_other_outputs_stand_beside_ours(suite, miniature, tmp_path, capsys):
    assert superb.main(line(suite, miniature, "--tasks", "pr")) == 0
    other = tmp_path / "teacher"
    given = line(suite, miniature, "--tasks", "pr", "--beside", str(suite.output))
    assert superb.main([*given, "--output", str(other)]) == 0
    rows = [row for row in capsys.readouterr().out.splitlines() if row.startswith("| starhubert")]
    assert [row.split("|")[1].strip() for row in rows[-2:]] == ["starhubert (out)", "starhubert (teacher)"]
    assert superb.main([*given, "--beside", str(tmp_path)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("no output of superb.py")


def test_real_corpora_have_overall_scores_and_published_rows(suite, tmp_path):
    corpora = {key: value for key, value in suite.corpora.items() if key != "miniature"}
    real = Suite("starhubert", suite.checkpoint, None, corpora, tmp_path / "real", "cpu")
    with pytest.raises(UserError, match="no task is finished"):
        write_report(real)
    for task in [task for task in TASKS.values() if not task.extra]:
        scores, note = run_task(real, task)
        keep(real, task, scores, note)
    assert finished(real, TASKS["sf"])[1].metric == "cer"
    text = write_report(real)
    assert "HuBERT Base (LS 960)" in text
    assert "Overall ↑" in text
    assert "overall,score" in (real.output / "scores.csv").read_text()
    assert (real.output / "parameters.png").exists()
    assert write_submission_of(real, real.output / "submission").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--tasks", "prr"], "--tasks prr: no such task (nearest: pr)"),
        (["--corpora", "absent.yaml"], "absent.yaml: No such file"),
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
    assert re.search(r"superb.py: sf: sf needs the corpus 'snips': .*absent does not exist", capsys.readouterr().err)
    assert read_state(suite.output, TASKS["ic"])["scores"] is not None


# --- surroundings that fail


def complaint_of(given: list[str], capsys) -> str:
    """The one line of a suite that does nothing."""
    assert superb.main(given) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_an_output_that_cannot_be_one_is_one_line(suite, miniature, tmp_path, pretender, capsys):
    (tmp_path / "file").write_text("mine")
    given = [*line(suite, miniature, "--tasks", "pr"), "--output"]
    assert f"cannot be the output: {tmp_path / 'file'} is a file" in complaint_of([*given, f"{tmp_path}/file"], capsys)
    assert f"{tmp_path / 'file'} is a file" in complaint_of([*given, f"{tmp_path}/file/below"], capsys)
    assert (tmp_path / "file").read_text() == "mine"
    assert re.match(r"superb.py: /proc/superb cannot be written: ", complaint_of([*given, "/proc/superb"], capsys))
    assert pretender.calls == []


HOLD = """
import sys, time; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from distiller.output import claimed
with claimed(Path(sys.argv[2]), sys.argv[3]):
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
    wanted = f"superb.py: {suite.output} is in use by another run (process {process}); wait for it, or give another"
    assert complaint_of(line(suite, miniature, "--tasks", "pr"), capsys).startswith(wanted)
    assert pretender.calls == []


def test_a_task_that_an_orphan_still_works_at_is_left_alone(suite, miniature, pretender, holder, capsys):
    process = holder(".pr.lock")  # what kill -9 of a suite with --gpus leaves
    assert superb.main(line(suite, miniature, "--tasks", "pr,ic")) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"superb.py: pr: {suite.output} is in use by another run (process {process})")
    assert read_state(suite.output, TASKS["pr"]) == {}
    assert read_state(suite.output, TASKS["ic"])["scores"] is not None


def test_a_full_disk_is_one_line_and_loses_nothing(suite, miniature, pretender, monkeypatch, capsys):
    assert superb.main(line(suite, miniature, "--tasks", "ic")) == 0
    table, kept = (suite.output / "table.md").read_text(), (suite.output / "ic.json").read_bytes()
    capsys.readouterr()

    def full(path, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for module in (suite_module, suite_report):
        monkeypatch.setattr(module, "write_whole", full)
    assert superb.main(line(suite, miniature, "--tasks", "ic,pr")) == 2
    said = capsys.readouterr().err.splitlines()
    assert f"[2/2] pr: {suite.output}: No space left on device" in said
    assert said[-1] == f"superb.py: {suite.output}: No space left on device"  # the table
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
        f"superb.py: sd: {moved}/libri2mix_diarization/test/rttm: No such file or directory",
        f"superb.py: sf: sf needs the corpus 'snips': {moved}/snips does not exist",
    ]
    assert [read_state(suite.output, TASKS[code])["scores"] is not None for code in ("ic", "ks")] == [True, True]
