"""Transcribed noises in LibriSpeech's layout, and a command line that fine-tunes a tiny encoder on them in a second."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile

from distiller import finetune

BEAM = find_spec("flashlight") is not None
needs_beam = pytest.mark.skipif(not BEAM, reason="flashlight-text is not installed")
WORDS = ("AB", "BA", "A", "ABBA", "B")


class SmallFineTuning:
    """Four steps on corpus/train, tested on corpus/dev; all paths are in the working directory."""

    ARGV = (
        "--model=teacher", "--corpus=corpus", "--output=run", "corpus.subsets=[train]", "corpus.validation=[dev]",
        "corpus.batch_seconds=1.2", "corpus.buckets=1", "corpus.workers=0", "trainer.steps=4",
        "trainer.accelerator=cpu", "trainer.checkpoint_every=1", "trainer.validate_every=2", "encoder.frozen=0.5",
    )  # fmt: skip

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self.capfd = capfd

    def completes(self, *argv: str) -> str:
        code = finetune.main([*self.ARGV, *argv])
        out, err = self.capfd.readouterr()
        assert (code, err) == (0, ""), out
        return out

    def refused(self, *argv: str) -> str:
        """The line on stderr, the only one."""
        code = finetune.main([*self.ARGV, *argv])
        out, err = self.capfd.readouterr()
        assert code == 2, out + err
        assert err.startswith("error: ")
        assert err.splitlines() == [err.rstrip("\n")]
        return err


@pytest.fixture
def small(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_teacher: Path, capfd: pytest.CaptureFixture[str]
) -> SmallFineTuning:
    monkeypatch.chdir(tmp_path)
    Path("teacher").symlink_to(tiny_teacher)
    random = np.random.default_rng(0)
    for subset, count in (("train", 6), ("dev", 2)):
        folder = Path("corpus", subset, "1", "2")
        folder.mkdir(parents=True)
        lines = []
        for index in range(count):
            name = f"{subset}-{index}"
            soundfile.write(folder / f"{name}.flac", 0.1 * random.standard_normal(8000 + 400 * index), 16_000)
            lines.append(f"{name} {WORDS[index % 5]} {WORDS[(2 * index + 1) % 5]}\n")
        (folder / "1-2.trans.txt").write_text("".join(lines))
    return SmallFineTuning(capfd)
