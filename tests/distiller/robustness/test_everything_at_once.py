"""One corpus with files of every kind: what becomes of each, and counts that add up to the files found."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from distiller.audio.skipped import read_skipped
from distiller.preparation.prepare import prepare

RATE = 16_000


def noise(name: str, seconds: float, rate: int = RATE, channels: int = 1, seed: int = 0, **keys: str) -> bytes:
    path = Path("all", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    values = 0.1 * np.random.default_rng(seed).standard_normal((int(seconds * rate), channels))
    soundfile.write(path, values, rate, **keys)
    return path.read_bytes()


def used() -> list[str]:
    """Files that are used whole, by their names."""
    for name in ("a.wav", "b.flac", "c.mp3", "d.ogg", "e.aiff", "f.au", "g.caf", "h.w64", "deep/er/i.WAV"):
        noise(name, 0.4, format=Path(name).suffix[1:].upper())
    noise("j.sph", 0.4, format="NIST")
    noise("stereo.wav", 0.4, 44_100, 2)
    values = 0.1 * np.random.default_rng(0).standard_normal(6400)
    soundfile.write("all/cancels.wav", np.stack([values, -values], 1), RATE)
    return [path.name for path in Path("all").rglob("*") if path.is_file()]


def split() -> list[str]:
    noise("podcast.mp3", 9.3, 22_050, 2)
    noise("podcast.wav", 4.5)
    return ["podcast.mp3", "podcast.wav"]


def not_read() -> list[str]:
    names = ["x.m4a", "y.M4A", "z.wma", "film.mp4"]
    for name in names:
        Path("all", name).write_bytes(b"whatever is in it")
    return names


def set_aside() -> dict[str, str]:
    """At the scan: names and reasons."""
    content = bytearray(noise("piped.flac", 0.4))
    content[21:26] = bytes([content[21] & 0xF0, 0, 0, 0, 0])
    Path("all/piped.flac").write_bytes(content)
    Path("all/empty.wav").touch()
    Path("all/text.flac").write_text("no audio")
    noise("click.wav", 0.001)
    os.mkfifo("all/pipe.wav")
    Path("all/link.wav").symlink_to("nowhere")
    return {
        "piped.flac": "its header does not say how long it is",
        "empty.wav": "Format not recognised.", "text.flac": "Format not recognised.",
        "click.wav": "it has 16 samples at 16 kHz, but one frame needs 400", "pipe.wav": "it is not a regular file",
        "link.wav": "No such file or directory",
    }  # fmt: skip


def undecodable() -> dict[str, str]:
    """Found when they are decoded."""
    for name, values in (("silent.wav", np.zeros(8000)), ("constant.wav", np.full(8000, 0.25))):
        soundfile.write(Path("all", name), values, RATE)
    soundfile.write("all/nan.wav", np.where(np.arange(8000) == 9, np.nan, 0.1), RATE, subtype="FLOAT")
    for name in ("joined.flac", "joined.ogg", "joined.mp3"):
        Path("all", name).write_bytes(2 * noise(name, 0.5))
    for name in ("cut.flac", "cut.mp3"):
        content = noise(name, 1.2)
        Path("all", name).write_bytes(content[: len(content) // 2])
    joined = r"its header declares 0.50 s, but it holds about \d.\d\d s \(joined files\?\)"
    cut = r"its declared length is 1.20 s, but only 0.\d\d s can be decoded"
    return {
        "joined.flac": joined, "joined.ogg": joined, "joined.mp3": joined, "cut.flac": cut, "cut.mp3": cut,
        "silent.wav": "all its samples are zero", "constant.wav": "all its samples are 0.25",
        "nan.wav": "it holds NaN or infinite samples",
    }  # fmt: skip


@pytest.mark.slow
def test_every_kind_of_file_in_one_corpus(small_run, tmp_path: Path) -> None:
    Path("all").mkdir()
    whole, long, unread, reasons, late = used(), split(), not_read(), set_aside(), undecodable()
    noise("short.wav", 0.08)
    Path("all/notes.txt").write_text("no audio")
    corpus = [
        "corpus.subsets=[]", "corpus.validation=[]", "corpus.validation_share=0.2", "corpus.max_skipped=0.5",
        "corpus.min_seconds=0.1", "corpus.window_seconds=0.9",
    ]  # fmt: skip
    report, out = small_run.completes("--corpus=all", *corpus)
    inventory = report["corpus"]
    assert inventory["whole"]["count"] == len(whole) + len(late)
    assert inventory["split"]["count"] == len(long)
    assert inventory["split"]["seconds"] == pytest.approx(9.3 + 4.5, abs=0.01)
    assert inventory["windows"] == 11 + 5
    assert inventory["short"] == {"count": 1, "seconds": 0.08}
    assert inventory["not_read"] == {".m4a": 2, ".wma": 1, ".mp4": 1}
    assert inventory["unusable"] == len(reasons)
    files = [path for path in Path("all").rglob("*") if not path.is_dir() and path.name != "notes.txt"]
    assert inventory["found"] == len(files)
    listed = {Path(row.path).name: row.reason for row in read_skipped(Path("run/skipped.csv"))}
    assert listed.keys() == {*reasons, *unread, *late}
    assert all(re.fullmatch(reason, listed[name]) for name, reason in (reasons | late).items()), listed
    assert report["skipped"] == len(listed)
    lines = [
        "split: 2 recordings (0.00383 hours) longer than 1.4 s, into 16 windows of at most 0.9 s "
        "(corpus.window_seconds)",
        "left out: 1 recording (2.22e-05 hours) shorter than 0.1 s (corpus.min_seconds)",
        "not read: 2 .m4a, 1 .mp4, 1 .wma (convert them to wav or flac)",
    ]
    assert all(out.splitlines().count(line) == 2 for line in lines), out  # at the start and at the end
    card = Path("run/student/README.md").read_text()
    assert all("| {} | {} |".format(*line.split(": ", 1)) in card for line in lines)

    prepare(Path("all"), Path("prepared"), max_skipped=0.5)
    again, _ = small_run.completes("--corpus=prepared", *corpus, output="other")
    stored = again["corpus"]
    assert stored["whole"]["count"] == len(whole)  # decoding has set the others aside
    assert stored["unusable"] == len(reasons) - 1 + len(late) + 1
    assert {key: stored[key] for key in ("split", "windows", "short", "not_read", "found")} == {
        key: inventory[key] for key in ("split", "windows", "short", "not_read", "found")
    }
