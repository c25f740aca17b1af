import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from distiller.common.command import Failed
from downstream_recipes import run_downstream, s3prl_hook
from downstream_recipes.adaptation.checkpoints import read_checkpoint

SCRIPT = [run_downstream.__file__]
SHORT = ",,".join(
    f"config.{key}={value}"
    for key, value in {
        **{f"runner.{name}_step": 2 for name in ("eval", "save", "log")},
        "runner.total_steps": 4,
        "scheduler.num_warmup_steps": 1,
        "optimizer.lr": 0.01,
        "downstream_expert.datarc.train_batch_size": 4,
    }.items()
)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("-u wav2vec2_local", "error: -u wav2vec2_local needs a checkpoint: -k PATH"),
        ("-u hubert_url", "error: -u hubert_url needs a checkpoint: -k URL"),
        ("-u wav2vec2_local -k absent.pt", "error: -k absent.pt does not exist"),
        ("-u starhuberd -k student", "error: -u starhuberd does not exist; did you mean starhubert?"),
    ],
)
def test_an_upstream_that_cannot_be_opened_leaves_no_folder(folder, capsys, given, message):
    pytest.importorskip("s3prl")
    assert run_downstream.main([*given.split(), *["-d", "ic", "--corpora", "corpora.yaml", "--device", "cpu"]]) == 2
    assert capsys.readouterr().err == f"{message}\n"
    assert not Path("result").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "-u starhubert -d ic --corpra corpora.yaml",
            "error: option --corpra does not exist; did you mean --corpora?\n",
        ),
        ("-u starhubert -d ic --corpora absent.yaml", "error: absent.yaml cannot be read: No such file or directory\n"),
    ],
)
def test_a_refused_command_leaves_no_folder(folder, capsys, line, message):
    assert run_downstream.main(line.split()) == 2
    assert capsys.readouterr().err == message
    assert not Path("result").exists()


def test_whatever_s3prl_raises_is_one_line(folder, monkeypatch, capsys):
    def fail(arguments, corpora):
        raise Failed("ValueError: num_samples=0")

    monkeypatch.setattr(run_downstream, "run_experiment", fail)
    assert run_downstream.main(["-u", "starhubert", "-d", "ic", "--corpora", "corpora.yaml", "--device", "cpu"]) == 1
    assert capsys.readouterr().err == "error: ValueError: num_samples=0\n"


def python(program: list[str], given: str, *more: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, *program, *given.split(), *more, "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(line, capture_output=True, text=True, env=environment)


def accuracy(output: str, split: str) -> float:
    return float(re.findall(rf"^{split} acc: (\S+)$", output, re.M)[-1])


@pytest.mark.slow
def test_training_evaluation_and_an_unmodified_s3prl_agree(folder):
    pytest.importorskip("s3prl")
    trained = python(SCRIPT, "-u starhubert -k student -d ic --corpora corpora.yaml -p exp", "-o", SHORT)
    assert trained.returncode == 0, trained.stderr[-2000:]
    assert (folder / "exp" / "states-4.ckpt").exists()
    evaluated = python(SCRIPT, "-m evaluate -t dev -e exp/states-4.ckpt")
    assert accuracy(evaluated.stdout, "dev") == accuracy(trained.stdout, "dev")

    (folder / "student").rename(folder / "a=b")
    (folder / "fluent").rename(folder / "elsewhere")
    (folder / "corpora.yaml").write_text("fluent_commands: elsewhere\nworkers: 0\n")
    moved = python(SCRIPT, "-m evaluate -t dev -e exp -k a=b --corpora corpora.yaml")
    assert accuracy(moved.stdout, "dev") == accuracy(trained.stdout, "dev")
    (folder / "a=b").rename(folder / "student")
    (folder / "elsewhere").rename(folder / "fluent")

    (folder / "site").mkdir()
    assert s3prl_hook.main(["install", "--site-packages", "site"]) == 0
    hooked = "import site; site.addsitedir('site'); import runpy, sys; sys.argv[0] = 's3prl'; "
    hooked += "runpy.run_module('s3prl.run_downstream', run_name='__main__')"
    given = "-m train -u starhubert -k student -d fluent_commands -c exp/ic.yaml -p plain"
    plain = python(["-c", hooked], given, "-o", SHORT)
    assert plain.returncode == 0, plain.stderr[-2000:]
    assert accuracy(plain.stdout, "dev") == accuracy(trained.stdout, "dev")
    weights = [read_checkpoint(folder / name / "states-4.ckpt") for name in ("exp", "plain")]
    for first, second in zip(*(states["Downstream"].values() for states in weights), strict=True):
        assert torch.equal(first, second)
    assert s3prl_hook.main(["remove", "--site-packages", "site"]) == 0
    assert list((folder / "site").glob("*.p*")) == []


@pytest.mark.slow
def test_interrupted_training_says_how_to_continue(folder):
    pytest.importorskip("s3prl")
    line = [
        sys.executable,
        *SCRIPT,
        *["-u", "starhubert", "-k", "student", "-d", "ic", "--corpora", "corpora.yaml", "-p", "exp", "--device", "cpu"],
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    endless = f"{SHORT},,config.runner.total_steps=100000"
    with (folder / "err").open("w+") as err:
        process = subprocess.Popen(
            [*line, "-o", endless], env=environment, stdout=subprocess.DEVNULL, stderr=err, start_new_session=True
        )
        while not (folder / "exp" / "states-6.ckpt").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        assert process.wait(60) == 143
        err.seek(0)
        said = err.read()
    assert "Traceback" not in said
    assert "interrupted; run the same command with -a to continue from its newest checkpoint" in said.splitlines()[-1]
    kept = sorted(path.name for path in (folder / "exp").glob("*.ckpt"))
    assert [name for name in kept if name.startswith("states-")]
    assert all(read_checkpoint(folder / "exp" / name)["Step"] > 0 for name in kept)
    step = max(int(name[7:-5]) for name in kept if name.startswith("states-"))
    continued = python(
        SCRIPT,
        "-u starhubert -k student -d ic --corpora corpora.yaml -p exp -a",
        "-o",
        endless.replace("100000", str(step + 2)),
    )
    assert continued.returncode == 0, continued.stderr[-2000:]
    assert f"Resume from exp/states-{step}.ckpt" in continued.stdout
    assert (folder / "exp" / f"states-{step + 2}.ckpt").exists()


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_opened_is_one_line_too(folder):
    pytest.importorskip("s3prl")
    run = python(SCRIPT, "-u starhubert -k corpora.yaml -d ic --corpora corpora.yaml -p exp")
    assert run.returncode == 2
    assert "corpora.yaml" in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr
