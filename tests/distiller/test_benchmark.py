"""The command distiller/benchmark.py: wrong options, and Ctrl-C while other processes measure."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from torch.cuda import is_available

from distiller import benchmark

NO_GPU = (["x"], ["x", "--long", "1"], ["--train", "star"], ["--train", "star", "--loop"]) if not is_available() else ()


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["x", "--batches", "1,a"], "--batches: invalid int list value: '1,a'"),
        (["x", "--batches", "0"], "--batches is 0, but it must be sizes from 1 to 1024"),
        (["x", "--threads", "0"], "--threads is 0, but it must be from 1 to 1024"),
        (["x", "--seconds", "0"], "--seconds is 0.0, but it must be from 0.1 to 600"),
        (["x", "--device", "tpu"], "invalid choice: 'tpu'"),
        ([], "the following arguments are required: PATH"),
        (["x", "--train", "star"], "give PATHs, or --train METHODS, not both"),
        (["--train", "start"], "--train is 'start', but it must be one of star, skill"),
        (["x", "--long", "0"], "--long is 0.0, but it must be from 1 to 36000"),
        (["x", "--loop"], "--loop needs --train METHODS"),
        (["--train", "star", "--loop", "0"], "--loop is 0.0, but it must be from 1 to 86400"),
        (["--train", "star", "--loop", "--hours", "0"], "--hours is 0.0, but it must be from 0.001 to 1000"),
        (["--train", "star", "--long", "1"], "give --train METHODS or --long SECONDS, not both"),
        (["--train", "star", "x", "seed=1"], "give PATHs, or --train METHODS, not both"),
        (["--train", "star", "seed=x"], "seed is 'x', but it must be an integer"),
        (
            ["--train", "star", "--rounds", "1", "trainer.step=1"],
            "trainer.step is not a recipe key; it could be one of",
        ),
        (["--train", "star", "--loop", "1", "--hours", "0.01", "seed=x"], "seed is 'x', but it must be"),
        *((["--device", "cuda", *rest], "--device is cuda, but this machine has only a cpu") for rest in NO_GPU),
        (["random:skill", "--output", "file"], "file cannot be written: file is a file"),
        (["--train", "star", "--output", "file/x"], "file/x cannot be written: file is a file"),
        (["random:skill", "--long", "1", "--output", "file/x"], "file/x cannot be written: file is a file"),
    ],
)
def test_a_wrong_command_is_one_line(argv, line, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert benchmark.main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert line in error
    assert [name for name in os.listdir() if name != "exp"] == ["file"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", [[], ["--long", "600"]])
def test_ctrl_c_is_one_line(mode, tiny_teacher, tmp_path) -> None:
    """To the process and to those that it measures in, as from a terminal."""
    argv = [str(tiny_teacher), *mode, "--seconds", "60", "--rounds", "1000", "--output", str(tmp_path / "bench")]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, benchmark.__file__, *argv], stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 300
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not children.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=120) == 130
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert log.splitlines()[-1] == "interrupted; no measurements were saved"
