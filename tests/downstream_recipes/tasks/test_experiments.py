"""What a user types beside an experiment, whose checkpoint s3prl would take everything from."""

import argparse
import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from downstream_recipes.run_downstream import parser
from downstream_recipes.tasks import command_checks, runner
from downstream_recipes.tasks.recipes import read_corpora
from upstream.errors import UserError

STORED = {
    "upstream": "starhubert_local", "upstream_ckpt": "gone/student", "downstream": "fluent_commands", "seed": 1337,
    "config": "exp/ic.yaml", "expdir": "exp", "upstream_layer_selection": 0, "upstream_trainable": False,
    "downstream_variant": None, "upstream_feature_selection": "hidden_states", "hub": "torch", "verbose": False,
}  # fmt: skip


@pytest.fixture
def evaluate(folder: Path, monkeypatch) -> Callable[[str], dict[str, Any]]:
    """s3prl's arguments, with -o as s3prl reads it."""
    seen: dict[str, Any] = {}
    monkeypatch.setattr(runner, "run_s3prl", lambda arguments, log: seen.update(arguments))
    monkeypatch.setattr(command_checks, "check_upstream", lambda *given: seen.update(checked=given))
    recipe = {"runner": {"total_steps": 9}, "downstream_expert": {"datarc": {"file_path": str(folder / "fluent")}}}
    (folder / "exp").mkdir()
    (folder / "exp" / "ic.yaml").write_text(yaml.safe_dump(recipe))
    torch.save({"Args": argparse.Namespace(**STORED), "Config": recipe}, folder / "exp" / "states-4.ckpt")

    def run(line: str) -> dict[str, Any]:
        seen.clear()
        arguments = vars(parser().parse_args(["--device", "cpu", *line.split()]))
        runner.run_experiment(arguments, lambda: read_corpora(Path(arguments["corpora"])))
        options = [option.split("=") for option in (seen["override"] or "").split(",,") if option]
        return seen | {key: ast.literal_eval(value) for key, value in options}

    return run


@pytest.mark.parametrize("given", ["-m evaluate -e exp", "-u starhubert_local -d ic -p exp -a"])
def test_what_was_typed_goes_above_the_checkpoint(evaluate, folder, given):
    seen = evaluate(f"{given} -k here/a=b,,'c' -g states=all --seed 7 --verbose -o config.runner.total_steps=5")
    assert (seen["past_exp"], seen.get("auto_resume"), seen.get("upstream_ckpt")) == (Path("exp"), None, None)
    assert seen["args.upstream_ckpt"] == "here/a=b,,'c'"
    assert (seen["args.upstream_model_config"], seen["args.seed"], seen["args.verbose"]) == ("states=all", 7, True)
    assert seen["checked"] == ("starhubert_local", "here/a=b,,'c'")
    assert seen["override"].endswith(",,config.runner.total_steps=5")  # what the user overrides comes last


def test_an_experiment_can_be_evaluated_into_another_folder(evaluate, folder):
    assert evaluate("-m evaluate -e exp -p other")["args.expdir"] == "other"
    assert evaluate("-m evaluate -e exp -n other")["args.expdir"] == "result/downstream/other"
    (folder / "exp").rename(folder / "moved")
    assert evaluate("-u starhubert_local -d ic -p moved -a")["args.expdir"] == "moved"
    assert evaluate("-m evaluate -e moved/states-4.ckpt")["override"] is None


def test_what_is_as_it_was_may_be_typed(evaluate, folder):
    for downstream in ("ic", "fluent_commands"):
        seen = evaluate(f"-m evaluate -e exp -u starhubert_local -d {downstream} -l 0 -s hidden_states")
        assert seen["override"] is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("-u hubert", "-u is 'hubert', but it must be starhubert_local, as when exp was made"),
        ("-l 5", "-l is '5', but it must be 0, as when exp was made"),
        ("-d asr", "-d is 'asr', but it must be ic or fluent_commands, as when exp was made"),
        ("-v fold2", "-v is 'fold2', but it must be left out, as when exp was made"),
        ("-s PR", "-s is 'PR', but it must be hidden_states, as when exp was made"),
        ("-f", "-f is True, but it must be left out, as when exp was made"),
        ("--upstream_feature_normalize", "--upstream_feature_normalize is True, but it must be left out, as when"),
        ("-p own.yaml/x", "own.yaml/x cannot be written: own.yaml is a file"),
        ("-i other.ckpt", "-i other.ckpt would have no effect: the checkpoint of exp is loaded"),
        ("-a", "-a has no effect with -e exp: it looks for a checkpoint in the folder of -p or -n"),
        ("-c short.yaml", "short.yaml has no runner.total_steps, but exp was made with runner.total_steps: 9"),
        ("-o runner.total_steps=5", "-o is 'runner.total_steps=5', but it must be args.NAME=VALUE or config.KEY=VALUE"),
        ("-o args.upstream_chkpt=x", "-o is 'args.upstream_chkpt=x', but it must be args.NAME=VALUE"),
        ("-o config.runner", "-o is 'config.runner', but it must be"),
        ("-o config.runner.a=b=c", "-o is 'config.runner.a=b=c', but it must be"),
        ("-o config.runner.total_step=5", "-o config.runner.total_step does not exist; did you mean config.runner.tot"),
    ],
)
def test_what_contradicts_it_is_a_one_line_error(evaluate, folder, given, message):
    (folder / "own.yaml").touch()
    (folder / "short.yaml").write_text("runner: {}\ndownstream_expert: {datarc: {file_path: a}}\n")
    with pytest.raises(UserError) as error:
        evaluate(f"-m evaluate -e exp {given}")
    assert str(error.value).startswith(message)


def test_a_corpus_that_has_moved_and_a_changed_recipe_are_used(evaluate, folder):
    recipe = "runner: {total_steps: 9}\ndownstream_expert: {datarc: {file_path: '${corpora.fluent_commands}'}}\n"
    (folder / "own.yaml").write_text(recipe.replace("9", "8"))
    (folder / "fluent").rename(folder / "elsewhere")
    (folder / "corpora.yaml").write_text("fluent_commands: elsewhere\n")
    seen = evaluate("-m evaluate -e exp -c own.yaml --corpora corpora.yaml")
    assert seen["config.downstream_expert.datarc.file_path"] == str(folder / "elsewhere")
    assert seen["config.runner.total_steps"] == 8
    assert len(seen["override"].split(",,")) == 2
    seen = evaluate("-m evaluate -e exp --corpora corpora.yaml")  # what a suite changed in our recipe stays
    assert seen["override"] == f"config.downstream_expert.datarc.file_path='{folder / 'elsewhere'}'"
    (folder / "exp" / "states-4.ckpt").unlink()
    torch.save(
        {"Args": argparse.Namespace(**STORED | {"config": "exp/own.yaml"}), "Config": {}}, folder / "exp/states-4.ckpt"
    )
    with pytest.raises(UserError, match="--corpora needs -c RECIPE too: exp was not made with a recipe of ours"):
        evaluate("-m evaluate -e exp --corpora corpora.yaml")
