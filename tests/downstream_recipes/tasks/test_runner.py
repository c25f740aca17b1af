"""What run_downstream.py fills in and checks before s3prl runs."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from distiller.common.command import Failed
from downstream_recipes.adaptation import compat
from downstream_recipes.miniature.make import corpora_file
from downstream_recipes.run_downstream import parser
from downstream_recipes.tasks import command_checks, runner
from downstream_recipes.tasks.command_line import command_line
from downstream_recipes.tasks.recipes import read_corpora, write_recipe
from downstream_recipes.tasks.runner import run_s3prl
from tests.downstream_recipes.laid_out import lay_out
from upstream.errors import UserError


@dataclass
class Experiment:
    arguments: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] | None = None


@pytest.fixture
def plan(monkeypatch) -> Callable[[str], Experiment]:
    """What run_downstream.py would let s3prl do."""
    experiment = Experiment()
    monkeypatch.setattr(command_checks, "check_upstream", lambda name, checkpoint: None)
    monkeypatch.setattr(runner, "write_recipe", lambda recipe, path: setattr(experiment, "recipe", recipe))
    monkeypatch.setattr(runner, "run_s3prl", lambda arguments, log: setattr(experiment, "arguments", arguments))

    def run(line: str) -> Experiment:
        arguments = vars(parser().parse_args(line.split()))
        runner.run_experiment(arguments, lambda: read_corpora(corpora_file(arguments["corpora"])))
        return experiment

    return run


def test_what_is_left_out_has_a_default(plan, folder):
    experiment = plan("-u starhubert -d ic --corpora corpora.yaml --seed 7 -f")
    result = Path("result/downstream/starhubert_ic")
    assert experiment.recipe["downstream_expert"]["datarc"]["file_path"] == str(folder / "fluent")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    words = f"-m train -u starhubert -d fluent_commands -c {result}/ic.yaml -p {result} --device {device} --seed 7 -f"
    assert sorted(command_line(experiment.arguments)) == sorted(words.split())
    assert not Path("result").exists()


def test_what_is_given_is_kept(plan, folder, monkeypatch):
    monkeypatch.setenv("SUPERB_CORPORA", "corpora.yaml")
    recipe = folder / "own.yaml"
    recipe.write_text("runner: {}\ndownstream_expert: {}\nroot: ${corpora.fluent_commands}\n")
    experiment = plan("-m inference -t own.yaml -u hubert -d ctc -c own.yaml -n trial --device cpu")
    values = experiment.arguments
    assert (values["mode"], values["upstream"], values["downstream"]) == ("inference", "hubert", "ctc")
    assert values["config"] == Path("result/downstream/trial/ctc.yaml")
    assert yaml.safe_load(write_recipe(experiment.recipe, values["config"]).read_text())["root"] == str(
        folder / "fluent"
    )
    assert plan("-u a -d fluent_commands -p exp").arguments["config"] == Path("exp/ic.yaml")


def test_query_by_example_is_evaluated_at_once(plan, folder):
    lay_out("quesst14", folder / "quesst14")
    (folder / "corpora.yaml").write_text("quesst14: quesst14")
    assert plan("-u starhubert -d qbe --corpora corpora.yaml").arguments["mode"] == "evaluate"


def experiment(folder: Path, downstream: str = "fluent_commands", **expert) -> None:
    folder.mkdir()
    config = {"runner": {}, "downstream_expert": expert}
    states = {"Args": argparse.Namespace(downstream=downstream), "Config": config}
    torch.save(states, folder / "states-20.ckpt")
    (folder / "states-4.ckpt").write_text("an older one, which nobody opens")


def test_a_checkpoint_brings_everything_else(plan, folder):
    experiment(folder / "exp")
    plain = plan("-m evaluate -e exp -o args.expdir=other --device cpu")
    words = "-m evaluate -e exp -o args.expdir=other --device cpu"
    assert sorted(command_line(plain.arguments)) == sorted(words.split())
    assert plain.recipe is None
    assert plan("-m evaluate -t dev -e exp/states-20.ckpt").arguments["evaluate_split"] == "dev"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("absent", "-e absent does not exist"),
        ("empty", r"-e empty has no checkpoint states-STEP\.ckpt"),
        ("corpora.yaml", r"-e corpora\.yaml is not a checkpoint of run_downstream\.py"),
        ("student/model.safetensors", "is not a checkpoint of run_downstream.py"),
        ("tensor.ckpt", "is not a checkpoint of run_downstream.py"),
        ("exp/states-4.ckpt", "is not a checkpoint of run_downstream.py, or is truncated"),
        ("exp -t tset", "-t is 'tset', but it must be one of train, dev, test; did you mean test"),
        ("asr", "-t is 'test', but it must be one of train, dev-clean"),
        ("asr -t test-clean", "-t is 'test-clean', but it must be one of train, dev-clean"),
    ],
)
def test_what_cannot_be_evaluated_is_a_one_line_error(plan, folder, given, message):
    (folder / "empty").mkdir()
    torch.save(torch.zeros(3), folder / "tensor.ckpt")
    experiment(folder / "exp")
    experiment(folder / "asr", "asr", datarc={"train": ["a"], "dev-clean": ["b"], "num_workers": 0})
    with pytest.raises(UserError, match=message):
        plan(f"-m evaluate -e {given}")
    added = "-m evaluate -e asr -t test-other -o config.downstream_expert.datarc.test-other=['c']"
    assert plan(added).arguments["evaluate_split"] == "test-other"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("-d ic", "-u is missing"),
        ("-u starhubert", "-d is missing"),
        ("-u starhubert -d icc --corpora corpora.yaml", "-d icc does not exist; did you mean ic"),
        ("-u starhubert -d ctc --corpora corpora.yaml", "-d ctc is more than one task; choose -d pr or sf"),
        ("-u starhubert -d ic -c absent.yaml", "absent.yaml cannot be read: No such file"),
        ("-u starhubert -d sid --corpora corpora.yaml", "sid needs the corpus 'voxceleb1'"),
        ("-u starhubert -d ic", "--corpora is not set"),
        (
            "-u a -d ic --corpora corpora.yaml --device gpu",
            "--device is 'gpu', but it must be cpu, cuda or cuda:NUMBER",
        ),
        ("-u a -d ic --corpora corpora.yaml --device cuda:99", r"--device is cuda:99, but torch sees \d+ GPUs here"),
        (
            "-u a -d ic --corpora corpora.yaml -p corpora.yaml/x",
            r"corpora\.yaml/x cannot be written: corpora\.yaml is a file",
        ),
        (
            "-u a -d ic --corpora corpora.yaml -p corpora.yaml",
            r"corpora\.yaml cannot be written: corpora\.yaml is a file",
        ),
        ("-u a -d ic --corpora corpora.yaml -m evaluate -t tset", "-t is 'tset', but it must be one of train"),
        (
            "-u a -d ic --corpora corpora.yaml -m inference",
            "-t is 'test', but it must be an existing wav for -m inference",
        ),
        ("-u a -d ic -c empty.yaml", r"empty\.yaml has no section runner"),
        ("-u a -d ic -c list.yaml", r"list\.yaml must hold"),
        ("-u a -d ic -c student/model.safetensors", "is not a YAML file"),
        ("-u a -d ic -c corpora.yaml", r"corpora\.yaml has no section runner; every recipe needs"),
    ],
)
def test_a_wrong_command_line_is_a_one_line_error(plan, folder, monkeypatch, given, message):
    monkeypatch.delenv("SUPERB_CORPORA", raising=False)
    (folder / "empty.yaml").touch()
    (folder / "list.yaml").write_text("- a\n")
    with pytest.raises(UserError, match=message):
        plan(given)
    assert not Path("result").exists()


def test_s3prl_gets_its_own_command_line(monkeypatch, tmp_path):
    seen: list[list[str]] = []
    fake_s3prl(monkeypatch, lambda: seen.append(sys.argv))
    before = sys.argv
    run_s3prl({"mode": "train", "downstream": "ic", "upstream_trainable": True, "seed": None}, tmp_path / "log")
    assert seen == [["run_downstream.py", "-m", "train", "-d", "fluent_commands", "-f"]]
    assert sys.argv is before


def test_whatever_s3prl_raises_is_one_line_and_a_traceback_in_a_log(monkeypatch, tmp_path):
    def fail():
        raise ValueError("num_samples=0\nand more")

    fake_s3prl(monkeypatch, fail)
    log = tmp_path / "exp" / "run_downstream.log"
    with pytest.raises(Failed) as failure:
        run_s3prl({"mode": "train"}, log)
    assert failure.value.args == (f"ValueError: num_samples=0 (traceback in {log})",)
    assert log.read_text().startswith("Traceback")
    (tmp_path / "file").touch()
    with pytest.raises(Failed) as failure:
        run_s3prl({"mode": "train"}, tmp_path / "file" / "log")  # cannot be written
    assert failure.value.args == ("ValueError: num_samples=0",)


def fake_s3prl(monkeypatch, main) -> None:
    monkeypatch.setattr(compat, "install", lambda: None)
    package: Any = type(sys)("s3prl")
    package.run_downstream = argparse.Namespace(main=main)
    monkeypatch.setitem(sys.modules, "s3prl", package)


def test_packages_that_a_task_lacks_are_named(monkeypatch):
    monkeypatch.setattr(command_checks, "find_spec", lambda name: None if name in ("asteroid", "pesq") else "there")
    with pytest.raises(UserError, match=r"^enhancement_stft needs .*: uv pip install asteroid pesq \(pesq needs a C"):
        command_checks.check_packages("enhancement_stft")
    command_checks.check_packages("ctc")
    monkeypatch.setattr(command_checks, "find_spec", lambda name: "there")
    command_checks.check_packages("enhancement_stft")
