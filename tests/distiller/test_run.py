"""The command line: one line for each mistake, one run per output, nothing removed that is not a run's."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from distiller import run
from distiller.common.files import lock_folder
from distiller.common.process import LAUNCHERS
from distiller.recipes.recipe import Recipe, load_recipe
from distiller.training import devices

SCRIPT = Path(run.__file__)
STAR = ["--method", "star", "trainer.accelerator=cpu"]
TORCHRUN = "TORCHELASTIC_RUN_ID=x RANK=1 LOCAL_RANK=1 WORLD_SIZE=2 LOCAL_WORLD_SIZE=2"
SRUN = "SLURM_PROCID=1 SLURM_LOCALID=1 SLURM_NODEID=0 SLURM_NTASKS=2"
CHILD = "LOCAL_RANK=1 NODE_RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty working directory, and no launcher around the tests."""
    for variable in {name for names in LAUNCHERS.values() for name in names}:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def distilled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Recipe, Path]]:
    """Runs that were handed over, in place of running them."""
    calls: list[tuple[Recipe, Path]] = []
    use(monkeypatch, lambda recipe, output: calls.append((recipe, output)))
    return calls


def use(monkeypatch: pytest.MonkeyPatch, distil: Callable[[Recipe, Path], object]) -> None:
    distillation, report = ModuleType("distiller.distillation.distil"), ModuleType("distiller.reports.report")
    vars(distillation).update(distil=distil, open_run=distil)
    vars(report).update(print_report=lambda output: print(f"table of {output}"))
    for module in (distillation, report):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def checkpoint(output: str) -> None:
    """What a run leaves that has got so far; before, its place is free."""
    Path(output, "checkpoints").mkdir()
    Path(output, "checkpoints", "step-00000001.ckpt").touch()


def contents(folder: Path) -> dict[str, int]:
    paths = (path for path in sorted(folder.rglob("*")) if path.name != ".lock")
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in paths}


# --- mistakes


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], ["--method", "star"]),
        (["--method", "strat"], ["strat", "it could be", "star"]),
        (["--method", "star-hubert-100h"], ["--recipe star-hubert-100h"]),
        (["--recipe", "star-hubert-100"], ["star-hubert-100 ", "did you mean star-hubert-100h?"]),
        (["--recipe", "mine.yaml"], ["mine.yaml", "does not exist"]),
        (["--method", "skill", "--recipe", "star"], ["--method skill", "--recipe star", "which is star"]),
        (["--metod", "star"], ["--metod", "did you mean --method?"]),
        (["--method"], ["--method", "expected one argument"]),
        (["--method", "star", "--output"], ["--output", "expected one argument"]),
        (["--method", "star", "--lr=3"], ["option --lr does not exist"]),
        (["--method", "star", "optimizer.learning_rate=1"], ["optimizer.learning_rate", "optimizer.lr"]),
        (["--method", "star", "optimizer.lr=-1"], ["optimizer.lr", "-1.0", "above 0"]),
        (["--method", "star", "trainer.steps=many"], ["trainer.steps", "'many'", "an integer"]),
        (["--method", "star", "student.size=bsae"], ["student.size", "bsae", "base"]),
        (["--method", "star", "objective=skill"], ["objective.name", "'skill'", "star"]),
        (["--method", "star", "star"], ["'star'", "key=value"]),
        (["--method", "star", "--teacher", "bundeld"], ["--teacher bundeld does not exist", "did you mean bundled?"]),
        (["--method", "star", "--corpus", "there/speach"], ["--corpus there/speach ", "mean there/speech?"]),
        (["--method", "star", "--output", "file"], ["file", "is a file"]),
        (["--method", "star", "--output", "file/below"], ["file/below", "file is a file"]),
        (["--recipe", "star-hubert-100h"], ["corpus.path is not set", "add --corpus DIR"]),
        (["--method", "star", "trainer.accelerator=cpu", "trainer.devices=0,1"], ["trainer.devices", "'0,1'", "count"]),
        (
            ["--method", "star", "trainer.accelerator=cpu", "trainer.precision=16-mixed"],
            ["trainer.precision", "bf16-mixed"],
        ),
        (["--method", "star", "trainer.accelerator=gpu"], ["trainer.accelerator", "'gpu'", "only cpu"]),
        (["--method", "star", "teacher=nowhere"], ["error: teacher nowhere does not exist"]),
        (["--method", "star", "corpus.path=nowhere"], ["error: corpus.path nowhere does not exist"]),
        (["--method", "star", "--dry-run", "--teacher", "no/such/folder"], ["--teacher no/such/folder"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    argv: list[str],
    said: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    distilled: list,
    tmp_path: Path,
) -> None:
    Path("there/speech").mkdir(parents=True)
    Path("file").touch()
    before = contents(tmp_path)
    monkeypatch.setattr(devices, "_available", lambda: {"cuda": 0, "mps": 0, "cpu": 2})
    assert run.main(argv) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), err[:7]) == ("", 1, "error: ")
    assert all(words in err for words in said), err
    assert not distilled
    assert contents(tmp_path) == before  # before any work


def test_uninstalled_and_from_any_directory(tmp_path: Path) -> None:
    def script(*argv: str) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        command = [sys.executable, "-I", str(SCRIPT), *argv]  # -I: neither the working directory nor user packages
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    helped, mistaken = script("--help"), script("--method", "star", "optimizer.lrr=1")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "python distiller/run.py --method star" in helped.stdout
    assert "star-wavlm-plus-960h" in helped.stdout
    assert mistaken.returncode == 2
    assert mistaken.stderr.splitlines() == [mistaken.stderr.strip()]
    assert "optimizer.lrr" in mistaken.stderr
    assert list(tmp_path.iterdir()) == []


# --- the output


def test_a_run_and_the_same_command_again(distilled: list, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([*STAR, "seed=3"]) == 0
    assert run.main([*STAR, "seed=3"]) == 0  # continues
    (recipe, output), again = distilled
    assert (recipe, output) == again
    assert output == Path("exp/star")
    assert (
        load_recipe(Path("exp/star/recipe.yaml"))
        == recipe
        == load_recipe("star", ["seed=3", "trainer.accelerator=cpu"])
    )
    (output / "report.json").write_text(json.dumps({}))
    assert run.main([*STAR, "seed=3", "trainer.accelerator=auto", "trainer.devices=2"]) == 0
    assert len(distilled) == 2
    assert capsys.readouterr().out == "table of exp/star\n"
    assert run.main([*STAR, "--overwrite"]) == 0  # another recipe, the old files gone
    assert (distilled[2][0].seed, (output / "report.json").exists()) == (1, False)


def test_paths_hold_in_any_directory(distilled: list, tmp_path: Path) -> None:
    Path("speech").mkdir()
    assert run.main([*STAR, "--corpus", "speech", "--teacher", "facebook/hubert-base-ls960", "--output", "run"]) == 0
    recipe, _ = distilled[0]
    assert (recipe.corpus.path, recipe.teacher) == (str(tmp_path / "speech"), "facebook/hubert-base-ls960")


@pytest.mark.parametrize("finished", [False, True])
def test_an_output_of_another_recipe(finished: bool, distilled: list, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([*STAR, "--output", "run"]) == 0
    checkpoint("run")
    if finished:
        Path("run/report.json").write_text("{}")
    before = contents(Path("run"))
    assert run.main([*STAR, "--output", "run", "optimizer.lr=1", "trainer.steps=7"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"run was made with another recipe: optimizer.lr ({load_recipe('star').optimizer.lr} against 1.0)" in err
    assert contents(Path("run")) == before
    assert len(distilled) == 1


def test_what_may_change_while_a_run_lasts(distilled: list, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(STAR) == 0
    checkpoint("exp/star")
    allowed = ["corpus.workers=0", "corpus.max_skipped=0.5", "trainer.checkpoint_every=3"]
    assert run.main([*STAR, *allowed]) == 0
    assert load_recipe(Path("exp/star/recipe.yaml")).corpus.workers == 0
    assert run.main([*STAR, *allowed, "trainer.devices=2"]) == 2
    assert "trainer.devices (1 against 2)" in capsys.readouterr().err
    assert len(distilled) == 2


def test_overwrite_removes_a_run_and_nothing_else(distilled: list, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine/letters").mkdir(parents=True)
    for argv in ([*STAR, "--output", "mine"], [*STAR, "--output", "mine", "--overwrite"]):
        assert run.main(argv) == 2
        assert "mine is not a run folder (it contains letters but no recipe.yaml)" in capsys.readouterr().err
    assert Path("mine/letters").is_dir()
    assert not distilled
    Path("run").mkdir()
    Path("run/tee.log").touch()  # python ... | tee run/tee.log
    assert run.main([*STAR, "--output", "run"]) == 0
    Path("run/checkpoints").mkdir()
    Path("run/checkpoints/step-1.ckpt").touch()
    assert run.main([*STAR, "--output", "run", "--overwrite"]) == 0
    assert sorted(path.name for path in Path("run").iterdir()) == [".lock", "recipe.yaml"]


def test_one_run_at_a_time(distilled: list, capsys: pytest.CaptureFixture[str]) -> None:
    hold = (
        f"import sys, time, os; sys.path.insert(0, {str(SCRIPT.parents[1])!r})\n"
        "from pathlib import Path; from distiller.common.files import lock_folder\n"
        "with lock_folder(Path('exp/star')):\n"
        "    if os.fork() == 0: time.sleep(60); os._exit(0)  # a data loader that outlives the run\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert run.main(STAR) == 2
        assert f"exp/star is in use by another run (process {holder.pid})" in capsys.readouterr().err
        assert run.main([*STAR, "--overwrite"]) == 2
        assert not distilled
        holder.kill()
        holder.wait()
        assert run.main(STAR) == 0  # kill -9 leaves nothing behind that refuses the next run
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
    with lock_folder(Path("exp/star")):
        pass


def test_only_the_first_rank_writes(distilled: list, monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in TORCHRUN.split():
        monkeypatch.setenv(*setting.split("="))
    assert run.main([*STAR, "--overwrite", "trainer.devices=2"]) == 0
    assert len(distilled) == 1
    assert not Path("exp").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_disk_that_refuses(code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(recipe: Recipe, output: Path) -> None:
        raise OSError(code, os.strerror(code), str(output / "metrics.csv"))

    use(monkeypatch, refuse)
    assert run.main(STAR) == 2
    assert capsys.readouterr().err == f"error: exp/star/metrics.csv cannot be used: {os.strerror(code)}\n"


def test_a_full_disk_before_the_run(
    distilled: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr("distiller.common.files.os.fsync", lambda descriptor: (_ for _ in ()).throw(full))
    assert run.main(STAR) == 2
    assert capsys.readouterr().err == "error: exp/star/recipe.yaml cannot be written: No space left on device\n"
    assert not distilled


def test_a_fault_of_ours_is_no_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(recipe: Recipe, output: Path) -> None:
        raise OSError(errno.EBADF, "ours")

    use(monkeypatch, fail)
    with pytest.raises(OSError, match="ours"):
        run.main(STAR)


# --- interruption


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("hidden", [False, True])
def test_interruption(
    number: int, code: int, hidden: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    went_on: list[bool] = []

    def interrupted(recipe: Recipe, output: Path) -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(2)
            went_on.append(True)
        except BaseException:
            if hidden:  # as a library may
                raise SystemExit(1) from None
            raise

    use(monkeypatch, interrupted)
    before = signal.getsignal(number)
    assert run.main(STAR) == code
    assert capsys.readouterr().err == "interrupted; run the same command to continue\n"
    assert signal.getsignal(number) == before
    assert not went_on


@pytest.mark.parametrize(("launcher", "code"), [(CHILD, 0), (TORCHRUN, 143), (SRUN, 143)])
def test_an_interrupted_child_leaves_the_exit_code_to_its_parent(
    launcher: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lightning's observer would kill the parent, in the midst of its own end, for any other code than 0."""
    monkeypatch.delenv("SLURM_JOB_NAME", raising=False)
    for setting in launcher.split():
        monkeypatch.setenv(*setting.split("="))
    use(monkeypatch, lambda recipe, output: signal.raise_signal(signal.SIGTERM))
    assert run.main([*STAR, "trainer.devices=2"]) == code
    assert capsys.readouterr().err == "[rank 1] interrupted; run the same command to continue\n"


def test_an_interruption_has_the_last_word(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    class Bar:
        def __init__(self) -> None:
            self.trainer = self  # as a progress bar and its trainer know each other

        def __del__(self) -> None:
            print("the bar's last line", file=sys.stderr)

    def interrupted(recipe: Recipe, output: Path) -> None:
        bar = Bar()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(2)
        del bar

    use(monkeypatch, interrupted)
    assert run.main(STAR) == 143
    assert capfd.readouterr().err.splitlines() == [
        "the bar's last line",
        "interrupted; run the same command to continue",
    ]


def test_a_forked_data_loader_ends_quietly(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    statuses: list[int] = []

    def fork(recipe: Recipe, output: Path) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            if (child := os.fork()) == 0:
                os.kill(os.getpid(), number)
                time.sleep(5)
                os._exit(1)
            statuses.append(os.waitpid(child, 0)[1])

    use(monkeypatch, fork)
    assert run.main(STAR) == 0
    assert statuses == [0, 0]  # any other, and torch raises an error about it beside the interruption
    assert capfd.readouterr().err == ""


# --- dry run


def test_dry_run_touches_nothing(
    distilled: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no-hub"))
    command = [
        "--recipe",
        "star-hubert-960h",
        "--teacher",
        "facebook/hubert-base-ls960",
        "--corpus",
        "/data/LibriSpeech",
    ]
    assert run.main([*command, "--dry-run", "trainer.devices=4", "trainer.accumulate=4"]) == 0
    printed = capsys.readouterr().out
    assert not distilled
    assert list(tmp_path.iterdir()) == []
    assert "22,308,592" in printed
    assert "20.6" in printed  # G MACs for 10 s
    assert "facebook/hubert-base-ls960 is not on this machine" in printed
    steps = 100 * int(960.9 * 3600 // (115 * 4 * 4))
    assert f"about {steps:,} of at most 1840 s" in printed
    assert "96,090.0 hours (100 epochs of 960.9)" in printed
    Path("again.yaml").write_text(printed)  # what it prints is a recipe
    assert load_recipe(Path("again.yaml")).trainer.accumulate == 4


@pytest.mark.parametrize(
    ("name", "model", "millions"),
    [("facebook/wav2vec2-xls-r-300m", "wav2vec 2.0 Large", 315), ("microsoft/wavlm-base-plus", "WavLM Base", 94)],
)
def test_a_teacher_that_is_elsewhere_has_the_shape_of_its_name(
    name: str,
    model: str,
    millions: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no-hub"))
    command = ["--recipe", "skill-wavlm-960h", "--teacher", name, "--corpus", "/data/LibriSpeech", "--dry-run"]
    assert run.main(command) == 0
    printed = capsys.readouterr().out
    assert f"{name} is not on this machine; taken to be {model}\n" in printed
    left = int(printed.split("about ")[1].split("; which")[0].replace(",", ""))
    assert left / 0.25 == pytest.approx(millions * 1e6, rel=0.005)
