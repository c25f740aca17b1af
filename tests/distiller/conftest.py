"""A run of a second through the command line, which tests may spoil: a tiny teacher and a folder of short noises."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from distiller import run
from distiller.common.process import LAUNCHERS
from upstream.checkpoint import save
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder

TEACHER = EncoderConfig(
    embed_dim=24,
    num_heads=2,
    head_dim=12,
    attention_heads=((0, 1),) * 2,
    ffn_dims=(32,) * 2,
    conv_layers=((8, 10, 5), *((8, 3, 2),) * 4, (8, 2, 2), (16, 2, 2)),
    positional_kernel=8,
    positional_groups=4,
)


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved random encoder of two narrow layers."""
    folder = tmp_path_factory.mktemp("tiny") / "teacher"
    torch.manual_seed(0)
    save(SpeechEncoder(TEACHER), folder)
    return folder


class SmallRun:
    """Three steps that take every file of corpus/train once; all paths are in the working directory."""

    ARGV = (
        "--method=star", "--teacher=teacher", "--corpus=corpus", "--output=run", "student.size=teacher",
        "corpus.subsets=[train]", "corpus.validation=[dev]", "corpus.batch_seconds=1.4", "corpus.buckets=1",
        "corpus.workers=0", "trainer.epochs=1", "trainer.accelerator=cpu", "trainer.checkpoint_every=1",
        "optimizer.lr=0.003", "probe.enabled=false",
    )  # fmt: skip

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self.capfd = capfd

    def completes(self, *argv: str, output: str = "run") -> tuple[dict, str]:
        """The report and stdout of a run that ends well and has nothing to say on stderr."""
        code = run.main([*self.ARGV, f"--output={output}", *argv])
        out, err = self.capfd.readouterr()
        assert (code, err) == (0, ""), out
        return json.loads(Path(output, "report.json").read_text()), out

    def refused(self, *argv: str, output: str = "run") -> str:
        """The line on stderr, the only one, of a run that the user has to mend."""
        code = run.main([*self.ARGV, f"--output={output}", *argv])
        out, err = self.capfd.readouterr()
        assert code == 2, out + err
        assert err.startswith("error: ")
        assert err.splitlines() == [err.rstrip("\n")]
        assert "Traceback" not in out
        assert not Path(output, "report.json").exists()
        return err


@pytest.fixture
def small_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_teacher: Path, capfd: pytest.CaptureFixture[str]
) -> SmallRun:
    """Makes tmp_path the working directory, with corpus/train, corpus/dev and teacher in it, and no launcher around."""
    for variable in {name for names in LAUNCHERS.values() for name in names}:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    Path("teacher").mkdir()
    for path in tiny_teacher.iterdir():
        Path("teacher", path.name).write_bytes(path.read_bytes())
    random = np.random.default_rng(0)
    for subset, lengths in (("train", range(3000, 5500, 250)), ("dev", (4000, 4500))):
        Path("corpus", subset).mkdir(parents=True)
        for index, length in enumerate(lengths):
            soundfile.write(f"corpus/{subset}/{index}.wav", 0.1 * random.standard_normal(length), 16_000)
    return SmallRun(capfd)


@pytest.fixture(scope="session")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 12 short noises, to compare layers on."""
    folder = tmp_path_factory.mktemp("audio")
    generator = np.random.default_rng(0)
    for index in range(12):
        soundfile.write(folder / f"{index}.wav", 0.1 * generator.standard_normal(8000 + 400 * index), 16_000)
    return folder
