"""What else lies in folders of audio: nothing there makes a scan wait or stop."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest
import soundfile

from distiller.audio.formats import AUDIO, COMMON, NOT_READ
from distiller.corpora.scanning import scan
from upstream.errors import UserError


def write(path: Path, **keys: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 8000), 16_000, **keys)
    return path


def test_pipes_sockets_devices_and_links_are_set_aside(tmp_path: Path) -> None:
    write(tmp_path / "good.wav")
    write(tmp_path / "folder.wav/inside.wav")
    (tmp_path / "empty.wav").mkdir()
    os.mkfifo(tmp_path / "pipe.wav")
    os.mkfifo(tmp_path / "pipe.mp3")
    (tmp_path / "device.wav").symlink_to("/dev/zero")
    (tmp_path / "gone.wav").symlink_to("nowhere")
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tmp_path / "socket.wav"))  # the path of a socket must be short
        cuts, skipped = scan(tmp_path, tmp_path)
    assert [cut.id for cut in cuts] == ["folder.wav/inside.wav", "good.wav"]
    assert {Path(row.path).name: row.reason for row in skipped} == {
        "pipe.wav": "it is not a regular file",
        "pipe.mp3": "it is not a regular file",
        "device.wav": "it is not a regular file",
        "socket.wav": "it is not a regular file",
        "gone.wav": "No such file or directory",
        "loop.wav": "Too many levels of symbolic links",
    }


def test_pipes_named_like_lists_and_shards(tmp_path: Path) -> None:
    write(tmp_path / "a.wav")
    for name in ("cuts.000000.jsonl", "recording.000000.tar", "list.txt", "m.jsonl"):
        os.mkfifo(tmp_path / name)
    assert [cut.id for cut in scan(tmp_path, tmp_path)[0]] == ["a.wav"]
    for name in ("list.txt", "m.jsonl"):
        with pytest.raises(UserError, match=rf"^\S+{name} is neither a folder nor a regular file$"):
            scan(tmp_path / name, tmp_path)


@pytest.mark.parametrize(
    "name", ["AIFF", "AU", "AVR", "CAF", "W64", "RF64", "NIST", "VOC", "IRCAM", "PAF", "PVF", "SVX"]
)
def test_formats_that_libsndfile_reads(tmp_path: Path, name: str) -> None:
    for ending in {f".{name.lower()}", {"NIST": ".sph", "AIFF": ".aif"}.get(name, ".wav")}:
        write(tmp_path / f"a{ending}", format=name, subtype="PCM_16")
    cuts, skipped = scan(tmp_path, tmp_path)
    assert (len(cuts), skipped) == (2, [])


def test_an_ending_is_read_or_not() -> None:
    assert set(COMMON) <= set(AUDIO)
    assert not NOT_READ & set(AUDIO)
    assert {".m4a", ".aac", ".wma", ".mp4", ".webm", ".amr"} <= NOT_READ
    assert all(ending == ending.lower() for ending in (*AUDIO, *NOT_READ))
