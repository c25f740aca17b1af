"""Bad audio, recipes and teachers through the command line, end to end: exit code, the one line, what it names."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from distiller import run
from distiller.audio.skipped import read_skipped
from distiller.common.files import read_columns

RATE = 16_000


def noise(path: Path, samples: int = 4000, rate: int = RATE, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal((samples, channels)), rate)
    return path


def floats(path: Path, first: float, rest: float = 0.1) -> None:
    """A wav of one special sample before 3,999 others."""
    soundfile.write(path, np.array([first] + [rest] * 3999), RATE, subtype="FLOAT")


def cut_short(path: Path, share: float = 0.6) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size if path.exists() else 8000))


# --- audio that a run can do without

BAD_AUDIO: dict[str, tuple[Callable[[Path], object], str]] = {  # file name, how it is made, the reason in the list
    "truncated.mp3": (lambda path: cut_short(noise(path)), "declared length"),
    "truncated.flac": (lambda path: cut_short(noise(path)), "decoder|declared length"),
    "truncated.ogg": (lambda path: cut_short(noise(path)), "it holds no samples|malformed"),
    "zeroed.wav": (zeroed, "Format not recognised"),
    "zeroed.flac": (zeroed, "Format not recognised"),
    "empty.ogg": (Path.touch, "Format not recognised"),
    "text.mp3": (lambda path: path.write_text("no audio\n" * 500), "Format not recognised"),
    "no-samples.wav": (lambda path: noise(path, 0), "it holds no samples"),
    "one-sample.wav": (lambda path: noise(path, 1), "it has 1 samples at 16 kHz, but one frame needs 400"),
    "nan.wav": (lambda path: floats(path, np.nan), "it holds NaN or infinite samples"),
    "infinite.wav": (lambda path: floats(path, -np.inf), "it holds NaN or infinite samples"),
    "silence.wav": (lambda path: floats(path, 0.0, 0.0), "all its samples are zero"),
    "link.wav": (lambda path: path.symlink_to("gone.wav"), "No such file or directory"),
    "\ufffd.wav": (  # a name that is not UTF-8
        lambda path: shutil.copy("corpus/train/0.wav", os.fsencode(path.parent) + b"/\xff.wav"),
        "its name is not UTF-8",
    ),
    'a, "b"\nc.wav': (zeroed, "Format not recognised"),
}


def test_files_that_cannot_be_used_are_set_aside(small_run, tmp_path: Path) -> None:
    for name, (make, _) in BAD_AUDIO.items():
        make(tmp_path / "corpus/train" / name)
    report, out = small_run.completes("corpus.max_skipped=0.7")
    reasons = {row.path: row.reason for row in read_skipped(Path("run/skipped.csv"))}
    expected = {str(tmp_path / "corpus/train" / name): reason for name, (_, reason) in BAD_AUDIO.items()}
    assert reasons.keys() == expected.keys()
    for path, reason in expected.items():
        assert re.search(reason, reasons[path]), (path, reasons[path])
    assert report["skipped"] == len(BAD_AUDIO)
    assert f"{len(BAD_AUDIO)} files skipped, see run/skipped.csv" in out
    assert np.isfinite(report["losses"]["train"]["loss"])


def test_validation_audio_that_cannot_be_used_is_listed_too(small_run, tmp_path: Path) -> None:
    path = tmp_path / "corpus/dev/bad.wav"
    floats(path, np.nan)
    assert small_run.completes()[0]["skipped"] == 1
    assert read_skipped(Path("run/skipped.csv")) == [(str(path), "it holds NaN or infinite samples")]


def test_8_khz_stereo_is_used(small_run) -> None:
    seconds = [soundfile.info(path).duration for path in Path("corpus/train").iterdir()]
    noise(Path("corpus/train/telephone.wav"), 2000, 8000, channels=2)
    assert small_run.completes()[0]["skipped"] == 0
    assert not Path("run/skipped.csv").exists()
    assert sum(read_columns(Path("run/metrics.csv"))["audio_seconds"]) == pytest.approx(sum(seconds) + 0.25, abs=1e-3)


# --- what a run cannot do without


def spoil(spoiled: Callable[[Path], object], subset: str, count: int = 100) -> Callable[[], object]:
    """Spoil so many files of a subset of the corpus."""
    return lambda: [spoiled(path) for path in sorted(Path("corpus", subset).iterdir())[:count]]


def recipe(text: str) -> Callable[[], object]:
    return lambda: Path("mine.yaml").write_text(text)


def nan(path: Path) -> None:
    floats(path, np.nan)


MINE, WHOLE = ["--recipe=mine.yaml"], ["corpus.subsets=[]", "corpus.validation=[]"]
REFUSED: dict[str, tuple[Callable[[], object], list[str], list[str]]] = {  # what happened, the command, what it names
    "missing corpus": (lambda: shutil.rmtree("corpus"), [], ["corpus corpus does not exist"]),
    "empty folder": (Path("empty").mkdir, ["--corpus=empty", *WHOLE], ["empty holds no audio"]),
    "missing subset": (list, ["corpus.subsets=[trian]"], ["corpus has no subset 'trian'", "dev, train"]),
    "no corpus at all": (recipe(""), ["--corpus=mine.yaml", *WHOLE], ["mine.yaml is not a corpus", ".flac"]),
    "list of what is not there": (
        lambda: Path("corpus/list.txt").write_text("train/0.wav\ntrain/gone\n"),
        ["--corpus=corpus/list.txt", *WHOLE],
        ["corpus/train/gone does not exist"],
    ),
    "one utterance": (
        lambda: noise(Path("one/a.wav")),
        ["--corpus=one", *WHOLE],
        ["not enough audio", "1 for validation"],
    ),
    "nothing but zeroed audio": (spoil(zeroed, "train"), [], ["corpus/train/0.wav", "Format not recognised"]),
    "many zeroed files": (spoil(zeroed, "train", 2), [], ["2 of 12", "corpus.max_skipped", "corpus/train/0.wav"]),
    "many NaN files": (spoil(nan, "train", 3), [], ["corpus.max_skipped", "run/skipped.csv says why"]),
    "NaN validation": (spoil(nan, "dev"), [], ["utterances tried for a batch could be decoded", "corpus/dev/", "NaN"]),
    "deafening audio": (
        spoil(lambda path: floats(path, 3e38, -3e38), "train"),
        [],
        ["is not finite at step 1 (files ", "corpus/train/", "should be within -1 to 1"],
    ),
    "missing recipe": (list, MINE, ["mine.yaml", "does not exist"]),
    "recipe that is a folder": (Path("mine.yaml").mkdir, MINE, ["mine.yaml"]),
    "recipe that is no YAML": (recipe("method: [star"), MINE, ["mine.yaml is not valid YAML"]),
    "wrong section": (recipe("extends: star\noptimiser: {lr: 1}"), MINE, ["optimiser", "optimizer"]),
    "wrong key": (recipe("extends: star\noptimizer: {rl: 1}"), MINE, ["optimizer.rl", "optimizer.lr"]),
    "wrong type": (recipe("extends: star\noptimizer: {eps: tiny}"), MINE, ["optimizer.eps", "'tiny'", "a number"]),
    "missing teacher": (lambda: shutil.rmtree("teacher"), [], ["teacher teacher does not exist"]),
    "teacher without weights": (Path("teacher/model.safetensors").unlink, [], ["teacher/model.safetensors"]),
    "truncated teacher": (
        lambda: cut_short(Path("teacher/model.safetensors")),
        [],
        ["teacher/model.safetensors", "not a complete safetensors file"],
    ),
    "teacher that is audio": (list, ["--teacher=corpus/train/0.wav"], ["corpus/train/0.wav"]),
    "cache that is a file": (recipe(""), ["--corpus=synthetic", *WHOLE], ["mine.yaml", "SPEECH_DISTILLER_CACHE"]),
    "output that is a file": (Path("run").touch, [], ["run cannot be written: run is a file"]),
    "output of something else": (
        lambda: noise(Path("run/song.wav")),
        [],
        ["run is not a run folder", "song.wav"],
    ),
}


@pytest.mark.parametrize("category", REFUSED)
def test_what_the_user_has_to_mend_is_one_line(category: str, small_run, monkeypatch: pytest.MonkeyPatch) -> None:
    happened, argv, names = REFUSED[category]
    monkeypatch.setenv("SPEECH_DISTILLER_CACHE", "mine.yaml")
    happened()
    line = small_run.refused(*argv)
    assert all(name in line for name in names), line


@pytest.mark.slow
def test_the_command_itself_with_processes_that_decode(small_run) -> None:
    spoil(nan, "train", 3)()
    command = [sys.executable, run.__file__, *small_run.ARGV, "corpus.workers=2"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert re.fullmatch(
        r"error: \d of \d+ utterances \(.*\) could not be used, .*corpus\.max_skipped.*run/skipped\.csv says why\n",
        ended.stderr,
    )
    listed = {Path(row.path).name for row in read_skipped(Path("run/skipped.csv"))}
    assert listed <= {"0.wav", "1.wav", "2.wav"}
    assert len(listed) >= 2
