import argparse
import csv
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from downstream_recipes import run_downstream, s3prl_hook
from downstream_recipes.adaptation.s3prl_output import read_checkpoint
from tests.downstream_recipes.laid_out import lay_out
from upstream.checkpoint import save
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError

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


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """Fluent Speech Commands of two tones, and a tiny student."""
    rng = np.random.default_rng(0)
    wavs = tmp_path / "fluent" / "wavs" / "speakers" / "s"
    wavs.mkdir(parents=True)
    (tmp_path / "fluent" / "data").mkdir()
    for split, count in (("train", 8), ("valid", 4), ("test", 4)):
        rows = [["", "path", "speakerId", "transcription", "action", "object", "location"]]
        for index in range(count):
            tone = 0.3 * np.sin(2 * np.pi * 300 * (1 + index % 2) * np.arange(8000) / 16000)
            soundfile.write(wavs / f"{split}{index}.wav", tone + 0.01 * rng.standard_normal(8000), 16000)
            action = ("increase", "decrease")[index % 2]
            rows.append([str(index), f"wavs/speakers/s/{split}{index}.wav", "s", "words", action, "volume", "none"])
        with (tmp_path / "fluent" / "data" / f"{split}_data.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    (tmp_path / "corpora.yaml").write_text("fluent_commands: fluent\nworkers: 0\n")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = EncoderConfig(
        embed_dim=48,
        num_heads=4,
        head_dim=12,
        attention_heads=((0, 1, 2, 3),) * 3,
        ffn_dims=(64,) * 3,
        conv_layers=((16, 10, 5), (24, 1, 1), *((24, 3, 2),) * 4, (40, 2, 2), (40, 2, 2)),
        positional_kernel=16,
        positional_groups=4,
    )
    save(SpeechEncoder(config), tmp_path / "student")
    return tmp_path


def arguments(given: str) -> dict[str, str]:
    """s3prl's command line for ours, as flag -> value."""
    line = run_downstream.s3prl_arguments(given.split())
    return dict(zip(line[::2], line[1::2], strict=True))


def test_what_is_left_out_has_a_default(folder):
    line = arguments("-u starhubert -d ic --corpora corpora.yaml --seed 7")
    expected = {"-m": "train", "-u": "starhubert", "-d": "fluent_commands", "--seed": "7"}
    assert line.items() >= expected.items()
    assert line["-p"] == "result/downstream/starhubert_ic"
    assert line["-c"] == "result/downstream/starhubert_ic/ic.yaml"
    assert line["--device"] == ("cuda" if torch.cuda.is_available() else "cpu")
    configuration = yaml.safe_load((folder / line["-c"]).read_text())
    assert configuration["downstream_expert"]["datarc"]["file_path"] == str(folder / "fluent")


def test_what_is_given_is_kept(folder, monkeypatch):
    monkeypatch.setenv("SUPERB_CORPORA", "corpora.yaml")
    own = folder / "own.yaml"
    own.write_text("runner: {}\ndownstream_expert: {}\nroot: ${corpora.fluent_commands}\n")
    line = arguments("-m inference -t own.yaml -u hubert -d ctc -c own.yaml -n trial --device cpu")
    assert (line["-m"], line["-u"], line["-d"]) == ("inference", "hubert", "ctc")
    assert line["-c"] == "result/downstream/trial/ctc.yaml"
    assert yaml.safe_load((folder / line["-c"]).read_text())["root"] == str(folder / "fluent")
    assert arguments("-u a -d fluent_commands -p exp")["-c"] == "exp/ic.yaml"
    assert "-f" in run_downstream.s3prl_arguments(["-u", "a", "-d", "ic", "-f"])


def test_query_by_example_is_evaluated_at_once(folder):
    lay_out("quesst14", folder / "quesst14")
    (folder / "corpora.yaml").write_text("quesst14: quesst14")
    assert arguments("-u starhubert -d qbe --corpora corpora.yaml")["-m"] == "evaluate"


def experiment(folder: Path, downstream: str = "fluent_commands", **expert) -> None:
    folder.mkdir()
    config = {"runner": {}, "downstream_expert": expert}
    states = {"Args": argparse.Namespace(downstream=downstream), "Config": config}
    torch.save(states, folder / "states-20.ckpt")
    (folder / "states-4.ckpt").write_text("an older one, which nobody opens")


def test_a_checkpoint_brings_everything_else(folder):
    experiment(folder / "exp")
    line = arguments("-m evaluate -e exp -o args.expdir=other")
    assert set(line) == {"-m", "-e", "--device", "-o"}
    assert arguments("-m evaluate -t dev -e exp/states-20.ckpt")["-t"] == "dev"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("absent", "-e absent: no such checkpoint"),
        ("empty", r"-e empty: no states-STEP\.ckpt in this folder"),
        ("corpora.yaml", r"-e corpora\.yaml: no checkpoint of run_downstream's"),
        ("student/model.safetensors", "no checkpoint of run_downstream's"),
        ("tensor.ckpt", "no checkpoint of run_downstream's"),
        ("exp/states-4.ckpt", "no checkpoint of run_downstream's, or cut short"),
        ("exp -t tset", "-t tset: no split of fluent_commands; it has train, dev, test"),
        ("asr", "-t test: no split of asr; it has train, dev-clean"),
        ("asr -t test-clean", "-t test-clean: no split of asr"),
    ],
)
def test_what_cannot_be_evaluated_is_one_sentence(folder, given, message):
    (folder / "empty").mkdir()
    torch.save(torch.zeros(3), folder / "tensor.ckpt")
    experiment(folder / "exp")
    experiment(folder / "asr", "asr", datarc={"train": ["a"], "dev-clean": ["b"], "num_workers": 0})
    with pytest.raises(UserError, match=message):
        run_downstream.s3prl_arguments(["-m", "evaluate", *f"-e {given}".split()])
    added = "-m evaluate -e asr -t test-other -o config.downstream_expert.datarc.test-other=['c']"
    assert arguments(added)["-t"] == "test-other"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("-d ic", "-u is missing"),
        ("-u starhubert", "-d is missing"),
        ("-u starhubert -d icc --corpora corpora.yaml", r"-d icc: no recipe of that name \(nearest: ic\)"),
        ("-u starhubert -d ctc --corpora corpora.yaml", "more than one task: give -d pr or sf"),
        ("-u starhubert -d ic -c absent.yaml", "-c absent.yaml: no such file"),
        ("-u starhubert -d sid --corpora corpora.yaml", "sid needs the corpus 'voxceleb1'"),
        ("-u starhubert -d ic", "which corpora"),
        ("-u a -d ic --corpora corpora.yaml --device gpu", "--device gpu: cpu, cuda or cuda:NUMBER is needed"),
        ("-u a -d ic --corpora corpora.yaml --device cuda:99", r"--device cuda:99: torch sees \d+ GPUs here"),
        ("-u a -d ic --corpora corpora.yaml -p corpora.yaml/x", r"-p .*/x: no folder .*: corpora\.yaml is a file"),
        ("-u a -d ic --corpora corpora.yaml -p corpora.yaml", r"-p corpora\.yaml: no folder .* is a file"),
        ("-u a -d ic --corpora corpora.yaml -m evaluate -t tset", "-t tset: no split of fluent_commands"),
        ("-u a -d ic --corpora corpora.yaml -m inference", "-t test: no such file; -m inference needs"),
        ("-u a -d ic -c empty.yaml", r"empty\.yaml: no recipe"),
        ("-u a -d ic -c list.yaml", r"list\.yaml: no recipe"),
        ("-u a -d ic -c student/model.safetensors", "not a text file"),
        ("-u a -d ic -c corpora.yaml", r"-c corpora\.yaml: no section runner: in it"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(folder, monkeypatch, given, message):
    monkeypatch.delenv("SUPERB_CORPORA", raising=False)
    (folder / "empty.yaml").touch()
    (folder / "list.yaml").write_text("- a\n")
    with pytest.raises(UserError, match=message):
        run_downstream.s3prl_arguments(given.split())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("-u wav2vec2_local", "^-u wav2vec2_local: needs a checkpoint of yours, -k PATH$"),
        ("-u hubert_url", "needs a checkpoint of yours, -k URL$"),
        ("-u wav2vec2_local -k absent.pt", "^-u wav2vec2_local -k absent.pt: no such file$"),
    ],
)
def test_an_upstream_of_s3prls_that_needs_a_checkpoint(folder, given, message):
    pytest.importorskip("s3prl")
    with pytest.raises(UserError, match=message):
        run_downstream.run([*given.split(), *["-d", "ic", "--corpora", "corpora.yaml", "--device", "cpu"]])


def test_whatever_s3prl_raises_is_one_line_and_a_log(folder, monkeypatch, capsys):
    def fail(argv):
        raise ValueError("num_samples=0\nand more")

    monkeypatch.setattr(run_downstream, "run", fail)
    monkeypatch.setattr("sys.argv", ["run_downstream.py", "-u", "starhubert", "-d", "ic"])
    assert run_downstream.main() == 1
    log = Path("result/downstream/starhubert_ic/run_downstream.log")
    assert capsys.readouterr().err == f"run_downstream.py: ValueError: num_samples=0 (all of it in {log})\n"
    assert log.read_text().startswith("Traceback")
    monkeypatch.setattr("sys.argv", ["run_downstream.py", "-u", "a", "-d", "ic", "-p", "corpora.yaml/x"])
    assert run_downstream.main() == 1
    assert capsys.readouterr().err == "run_downstream.py: ValueError: num_samples=0\n"


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
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("-u starhuberd -k student", "-u starhuberd: no such upstream; the nearest names are starhubert"),
        ("-u starhubert -k corpora.yaml", "corpora.yaml"),
    ],
)
def test_what_only_s3prl_can_know_is_one_line_too(folder, given, message):
    pytest.importorskip("s3prl")
    run = python(SCRIPT, f"{given} -d ic --corpora corpora.yaml -p exp")
    assert run.returncode == 2
    assert message in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr
