"""Runs whose files disappear, are damaged or forbidden, or fill the disk: one line, and then the run goes on."""

import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from lhotse.cut.data import DataCut
from torch import Tensor
from torch.utils.data import get_worker_info

from distiller.audio.decoding import Decoder
from distiller.audio.skipped import read_skipped
from distiller.common.files import remove
from upstream.checkpoint import load

DECODE = Decoder.decode


def checkpoints() -> list[str]:
    return sorted(path.name for path in Path("run/checkpoints").iterdir())


# --- between two runs


@pytest.fixture
def losses(small_run) -> dict:
    """Leaves run/ as a kill after the second of three steps would; what the losses would have been."""
    report, _ = small_run.completes()
    assert checkpoints() == ["step-00000002.ckpt", "step-00000003.ckpt"]
    for name in ("report.json", "student", "checkpoints/step-00000003.ckpt"):
        remove(Path("run", name))
    return report["losses"]


def test_an_output_of_another_recipe(small_run, losses: dict) -> None:
    assert "run was made with another recipe: optimizer.lr (0.003 against 0.1)" in small_run.refused("optimizer.lr=0.1")
    assert small_run.completes()[0]["losses"] == losses


def test_a_damaged_output(small_run, losses: dict) -> None:
    whole = Path("run/recipe.yaml").read_text()
    for damaged in ("", "\0" * 100, whole[:150]):
        Path("run/recipe.yaml").write_text(damaged)
        assert "run/recipe.yaml" in small_run.refused() or "made with another recipe" in small_run.refused()
    Path("run/recipe.yaml").write_text(whole)
    Path("run/metrics.csv").write_bytes(bytes(200))  # as a power failure leaves it
    assert small_run.completes()[0]["losses"] == losses


def test_a_corpus_that_disappears(small_run, losses: dict) -> None:
    Path("corpus").rename("moved")
    assert "corpus corpus does not exist" in small_run.refused()
    Path("corpus/train").mkdir(parents=True)
    assert "corpus has no subset 'dev'" in small_run.refused()
    Path("corpus/dev").mkdir()
    line = small_run.refused()
    assert "could not be used" in line or "could not be decoded" in line
    assert "run/skipped.csv" in line
    assert {row.reason for row in read_skipped(Path("run/skipped.csv"))} == {"No such file or directory"}
    shutil.rmtree("corpus")
    Path("moved").rename("corpus")
    assert small_run.completes()[0]["losses"] == losses


# --- workers


@pytest.fixture
def in_a_worker(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Has a worker of the run do something in place of the fifth utterance."""

    def replace(act: Callable[[], None]) -> None:
        def decode(self: Decoder, cut: DataCut) -> Tensor:
            if get_worker_info() and cut.id.endswith("4.wav"):
                act()
            return DECODE(self, cut)

        monkeypatch.setattr(Decoder, "decode", decode)

    return replace


def test_a_killed_worker(small_run, in_a_worker, losses: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    in_a_worker(lambda: os.kill(os.getpid(), signal.SIGKILL))
    line = small_run.refused("corpus.workers=1")
    assert "a worker process was killed, perhaps because memory ran out; run the same command again" in line
    assert "with fewer corpus.workers" in line
    monkeypatch.setattr(Decoder, "decode", DECODE)
    assert small_run.completes("corpus.workers=1")[0]["losses"] == losses


def test_what_a_worker_raises_is_not_called_a_kill(small_run, in_a_worker) -> None:
    def fails() -> None:
        raise RuntimeError("a defect")

    in_a_worker(fails)
    with pytest.raises(RuntimeError, match="a defect"):
        small_run.refused("corpus.workers=1")


# --- permissions


@pytest.fixture
def like_anyone() -> Iterator[None]:
    """Permissions hold for root too: this thread, and those it starts, do without the capabilities to ignore them."""
    if os.geteuid() != 0:
        yield
        return
    libc, header, before = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if not hasattr(libc, "capset") or libc.capget(header, before) != 0:
        pytest.skip("root, and no capabilities to do without")
    without = (ctypes.c_uint32 * 6)(before[0] & ~0b110, *before[1:])  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    assert libc.capset(header, without) == 0
    yield
    assert libc.capset(header, before) == 0


@pytest.mark.slow
@pytest.mark.usefixtures("like_anyone")
def test_no_permission_to_read(small_run, tmp_path: Path) -> None:
    path = tmp_path / "corpus/train/3.wav"
    path.chmod(0)
    assert small_run.completes()[0]["skipped"] == 1
    assert read_skipped(Path("run/skipped.csv")) == [(str(path), "Permission denied")]
    remove(Path("run"))
    for name in ("corpus/train", "teacher/model.safetensors", "teacher/config.json"):
        Path(name).chmod(0)
        line = small_run.refused()
        Path(name).chmod(0o755)
        assert name in line
        assert "cannot be read" in line
        assert "ermission denied" in line


@pytest.mark.usefixtures("like_anyone")
def test_an_output_that_is_read_only(small_run) -> None:
    Path("closed").mkdir(mode=0o555)
    assert "closed/run cannot be written: Permission denied" in small_run.refused(output="closed/run")
    assert "closed cannot be written: Permission denied" in small_run.refused(output="closed")
    report, _ = small_run.completes()
    for path in (Path("run"), *Path("run").rglob("*")):
        path.chmod(path.stat().st_mode & 0o555)
    assert small_run.completes()[0] == report  # a finished one is only shown


# --- disks


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], None]]:
    """Gives disk/ a size in kB, keeping what is on it."""
    path = tmp_path / "disk"
    path.mkdir()

    def resize(kilobytes: int) -> None:
        options = f"size={kilobytes}k" + (",remount" if path.is_mount() else "")
        mount = ["mount", "-t", "tmpfs", "-o", options, "none", str(path)]
        if sys.platform != "linux" or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("a small disk cannot be mounted here")

    yield resize
    if path.is_mount():
        subprocess.run(["umount", "--lazy", path], check=True)


@pytest.mark.parametrize(
    ("kilobytes", "name"),
    [
        (4, "/recipe.yaml"),
        (8, "/corpus/"),
        (36, "/tensorboard"),
        (200, "/checkpoints/step-00000001.ckpt"),
        (440, "/best"),
        (690, "/student"),
    ],
)
def test_a_full_disk(kilobytes: int, name: str, small_run, disk: Callable[[int], None]) -> None:
    disk(kilobytes)
    line = small_run.refused(output="disk/run")
    assert f"disk/run{name}" in line
    assert "No space left on device" in line
    assert {path.name for path in Path("disk/run").rglob(".*")} <= {".lock", ".busy"}  # nothing half-written
    disk(10_000)
    small_run.completes(output="disk/run")
    load("disk/run/student")


def test_a_disk_that_refuses_in_the_middle_of_a_checkpoint(small_run) -> None:
    """The largest file that is allowed is smaller than a checkpoint and larger than any other file."""
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, allowed[1]))
    try:
        line = small_run.refused()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    assert line == "error: run/checkpoints/step-00000001.ckpt cannot be written: File too large\n"
    assert checkpoints() == []
    small_run.completes()


def test_a_users_file_where_the_student_should_be(small_run, losses: dict) -> None:
    Path("run/student").mkdir()
    Path("run/student/notes.txt").touch()
    assert "run/student is not replaced: it contains" in small_run.refused()
    remove(Path("run/student"))
    assert small_run.completes()[0]["losses"] == losses
    assert np.isfinite(losses["train"]["loss"])
