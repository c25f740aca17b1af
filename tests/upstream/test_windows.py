"""What Windows is said to do: `load`, torch.hub and export, with locks that say that they are none."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from distiller.common import files
from upstream.checkpoint import load, save
from upstream.files import atomic_file

ROOT = Path(__file__).parents[2]

# This system without what Windows lacks.
WINDOWS = """
import builtins, os, signal, stat, sys
for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog"):
    sys.modules[name] = None
for name in ("fork", "forkpty", "getuid", "geteuid", "getpgid", "killpg", "setsid", "sched_getaffinity", "statvfs"):
    delattr(os, name)
for name in ("SIGKILL", "SIGPIPE", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGALRM"):
    delattr(signal, name)
opened, fsync = os.open, os.fsync
def open_file(path, flags, *args, **kwargs):
    if os.path.isdir(path) and "dir_fd" not in kwargs:  # which shutil passes, here alone
        raise PermissionError(13, "Permission denied", path)
    return opened(path, flags, *args, **kwargs)
def sync(descriptor):
    assert os.write(descriptor, b"") == 0  # EBADF for one that was opened for reading
    fsync(descriptor)
os.open, os.fsync = open_file, sync
sys.path.insert(0, sys.argv[1])
"""


def run(script: str, *arguments: Path, before: str = "") -> str:
    """The stderr of a script; `before` runs while the system is still itself, as libraries that look at it need."""
    command = [sys.executable, "-c", before + WINDOWS + script, str(ROOT), *map(str, arguments)]
    environment = os.environ | {"USERNAME": "user"}
    finished = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert finished.returncode == 0, finished.stderr
    return finished.stderr


FILES = """
from pathlib import Path
import distiller.common.command
from distiller.common.files import lock_folder, write_text, writing_folder
folder = Path(sys.argv[2])
with lock_folder(folder):
    write_text(folder / "a.txt", "a")
    write_text(folder / "a.txt", "b")
assert (folder / "a.txt").read_text() == "b"
"""


def test_files_are_written_and_a_lock_says_that_it_is_none(tmp_path) -> None:
    said = run(FILES, tmp_path / "out")
    assert "do not start another command that writes to it" in said


def test_a_folder_that_cannot_be_opened_is_not_synced(tmp_path, tiny_encoder, monkeypatch) -> None:
    def refuse(path: Path, flags: int) -> int:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("upstream.files.os", SimpleNamespace(**vars(os) | {"open": refuse}))
    save(tiny_encoder(), tmp_path / "student")
    save(tiny_encoder(), tmp_path / "student")
    with atomic_file(tmp_path / "file") as temporary:
        temporary.write_text("text")
    assert load(tmp_path / "student").config.embed_dim == 48


def test_without_locks_a_second_run_is_not_noticed(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(files, "fcntl", None)
    with files.lock_folder(tmp_path), files.lock_folder(tmp_path):
        assert capsys.readouterr().err.count("this system cannot lock") == 2


EXPORT = """
import torch
from upstream.checkpoint import load
from distiller import export
student, out = sys.argv[2:]
load(student)(torch.randn(16000))
torch.hub.load(sys.argv[1], "starhubert", source="local", ckpt=student)([torch.randn(16000)])
for to, name in (("transformers", "folder"), ("torch-export", "a.pt2"), ("onnx", "a.onnx")):
    assert export.main([student, "--to", to, "--output", f"{out}/{name}"]) == 0, to
"""


@pytest.mark.slow
def test_load_torch_hub_and_every_export_work(tmp_path, tiny_encoder) -> None:
    save(tiny_encoder(), tmp_path / "student")
    libraries = "import onnx, onnxruntime, onnxscript, torch, transformers.models.hubert.modeling_hubert\n"
    run(EXPORT, tmp_path / "student", tmp_path, before=libraries)
