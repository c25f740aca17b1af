"""How each task of the suite comes to its score, and where an interrupted one continues."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from downstream_recipes import superb
from downstream_recipes.suite.procedures import best_checkpoint, newest_checkpoint, run_task
from downstream_recipes.suite.suite import stage
from downstream_recipes.tasks.tasks import TASKS
from tests.downstream_recipes.pretender import line, values
from upstream.errors import UserError


def test_an_interrupted_task_goes_on_where_it_stopped(suite, pretender, monkeypatch):
    task = TASKS["ic"]
    evaluate = pretender.evaluate
    monkeypatch.setattr(pretender, "evaluate", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_task(suite, task)
    monkeypatch.setattr(pretender, "evaluate", evaluate)
    pretender.calls = []
    scores = run_task(suite, task).scores
    assert [call["mode"] for call in pretender.calls] == ["evaluate"]
    assert values(scores) == {"ic acc": 10.0}


def test_an_interrupted_training_continues_or_starts_again(suite, pretender):
    folder = suite.output / "ic"
    folder.mkdir(parents=True)
    (folder / "train.log").write_text("dev acc: 0.9999\n")
    run_task(suite, TASKS["ic"])
    assert pretender.calls[0]["downstream"] == "ic"  # nothing to continue from: from scratch, its old output gone
    assert "0.9999" not in (folder / "train.log").read_text()
    (folder / "train.json").unlink()
    (folder / "states-60.ckpt").write_bytes((folder / "states-40.ckpt").read_bytes()[:200])  # cut short by the kill
    run_task(suite, TASKS["ic"])
    assert pretender.calls[-1] == {"mode": "train", "past_exp": folder / "states-40.ckpt"}
    assert not (folder / "states-60.ckpt").exists()


def test_without_a_best_checkpoint_the_newest_is_tested(suite, pretender):
    folder = suite.output / "pr"
    folder.mkdir(parents=True)
    for step in (9, 100, 20):
        torch.save({"Step": step}, folder / f"states-{step}.ckpt")
    assert newest_checkpoint(folder) == folder / "states-100.ckpt"
    assert best_checkpoint(TASKS["pr"], folder) == folder / "states-100.ckpt"
    torch.save({"Step": 1}, folder / "dev-best.ckpt")
    assert best_checkpoint(TASKS["pr"], folder) == folder / "dev-best.ckpt"
    with pytest.raises(UserError, match="has no checkpoint"):
        best_checkpoint(TASKS["pr"], suite.output / "sid")


def test_emotion_is_the_mean_of_five_folds(suite, pretender):
    result = run_task(suite, TASKS["er"])
    scores, note = result.scores, result.note
    assert values(scores) == {"er acc": pytest.approx(30.0)}
    assert note == "ER: folds 10.0, 20.0, 30.0, 40.0, 50.0."
    commands = [shlex.split(command) for command in scores[0].command.split(" && ")]  # each prints its fold's
    assert [words[words.index("-e") + 1] for words in commands] == [
        str(suite.output / "er" / f"fold{fold}" / "dev-best.ckpt") for fold in range(1, 6)
    ]
    assert [call["downstream_variant"] for call in pretender.calls if call["mode"] == "train"] == [
        f"fold{fold}" for fold in range(1, 6)
    ]


def test_query_by_example_chooses_its_state_on_dev(suite, pretender):
    scores = run_task(suite, TASKS["qbe"]).scores
    assert [(call["evaluate_split"], call["upstream_layer_selection"]) for call in pretender.calls] == [
        ("dev", 0),
        ("dev", 1),
        ("dev", 2),
        ("test", 1),
    ]
    assert (scores[0].value, scores[0].unit, scores[0].split) == (1.0, "fraction", "eval")


def test_diarization_reports_the_best_of_the_sweep(suite):
    result = run_task(suite, TASKS["sd"])
    scores, note = result.scores, result.note
    assert scores[0].metric == "der"
    assert 0 < scores[0].value < 100  # everything is speech of both below .45; nothing is above, a DER of 100
    assert "threshold 0.3" in note


def test_the_learning_rate_is_chosen_on_dev(suite, pretender):
    result = run_task(replace(suite, lr_search=True), TASKS["sid"])
    scores, note = result.scores, result.note
    assert note == "Learning rate 1e-03, the best of 7 on dev."
    rates = [yaml_rate(call["config"]) for call in pretender.calls if call["mode"] == "train"]
    assert rates == pytest.approx([10.0**-power for power in range(1, 8)])
    tested = [call for call in pretender.calls if call["mode"] == "evaluate"]
    assert [call["past_exp"].parent.name for call in tested] == ["lr-1e-03"]
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
    note = run_task(searching, task).note
    trained = [call["expdir"].name for call in pretender.calls if call["mode"] == "train"]
    assert trained == ["lr-1e-04", "lr-1e-05", "lr-1e-06", "lr-1e-07"]
    assert note == "Learning rate 1e-03, the best of 7 on dev."


def yaml_rate(path: Path) -> float:
    return float(re.search(r"^  lr: (\S+)$", path.read_text(), re.M)[1])


def test_speaker_verification_searches_on_its_trials(suite, pretender):
    note = run_task(replace(suite, lr_search=True), TASKS["asv"]).note
    assert "the best of 7 on the test trials, as SUPERB does." in note
    assert len([call for call in pretender.calls if call["mode"] == "evaluate"]) == 14


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
