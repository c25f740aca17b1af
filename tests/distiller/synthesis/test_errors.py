"""What can go wrong with the synthetic corpus: a one-line error that names it, and nothing half done."""

import errno
import json
import os
import re
import signal
import sys

import pytest

from distiller.synthesis.espeak import Prosody, Synthesizer, Voice
from distiller.synthesis.shards import synthesise
from distiller.synthesis.splits import load_split, plan
from upstream.errors import UserError


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def files(directory) -> list[str]:
    """Every file below it except the lock."""
    return [path.name for path in directory.rglob("*") if path.is_file() and path.name != ".lock"]


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_cached_split_needs_neither_the_library_nor_a_writable_disk(monkeypatch, tmp_path):
    monkeypatch.setenv("SPEECH_DISTILLER_CACHE", str(tmp_path))
    first = load_split("validation", 2)
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    monkeypatch.setattr(os, "fsync", full_disk)
    assert load_split("validation", 2) == first


def test_an_unknown_split_is_named():
    with pytest.raises(UserError) as error:
        load_split("test")
    assert one_line(error).startswith("split is 'test', but it must be one of train, validation, ")


def test_a_missing_library_names_its_dependency_group(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(UserError) as error:
        synthesise(plan("train", 1), tmp_path)
    assert "uv sync --group synthesis" in one_line(error)
    assert files(tmp_path) == []


def test_a_full_disk_names_the_directory_and_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError) as error:
        synthesise(plan("train", 3), tmp_path, shard_size=1)
    assert str(tmp_path) in one_line(error)
    assert "No space left on device" in str(error.value)
    assert files(tmp_path) == []


def test_a_cache_that_cannot_be_made_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPEECH_DISTILLER_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError) as error:
        load_split("train", 1)
    assert str(tmp_path / "file") in one_line(error)
    assert "SPEECH_DISTILLER_CACHE" in str(error.value)


def test_a_cache_without_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65_534)  # nobody: root may write anywhere
    try:
        with pytest.raises(UserError, match=f"{re.escape(str(tmp_path))}.*Permission denied") as error:
            synthesise(plan("train", 1), tmp_path / "corpus")
    finally:
        os.seteuid(user)
    one_line(error)


def test_a_shard_that_was_tampered_with_is_named(tmp_path):
    synthesise(plan("train", 1), tmp_path)
    (manifest,) = tmp_path.glob("*/cuts.jsonl")
    manifest.write_text(manifest.read_text()[:100])
    with pytest.raises(UserError, match=re.escape(str(manifest.parent))) as error:
        synthesise(plan("train", 1), tmp_path)
    one_line(error)
    manifest.unlink()
    with pytest.raises(UserError, match="No such file"):
        synthesise(plan("train", 1), tmp_path)


def test_wrong_voices_and_texts_are_named():
    with pytest.raises(UserError, match=r"^accent is 'en-XX', but it must be one of en, "):
        Voice(accent="en-XX")
    with pytest.raises(UserError, match=r"^rate is 20, but it must be a number from 80 to 450$"):
        Prosody(rate=20)
    with Synthesizer() as synthesizer, pytest.raises(UserError, match="'  '"):
        synthesizer.speak("  ", Voice())


def test_the_speech_process_ends_silently_when_its_reader_has_ended(capfd):
    process = Synthesizer().process
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.close()
    voice = Voice()
    request = {"text": "One.", "accent": voice.accent, "voice": voice.definition(), **vars(Prosody())}
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.flush()
    assert process.wait(timeout=30) == -signal.SIGPIPE
    process.stdin.close()
    assert capfd.readouterr() == ("", "")


def test_a_dead_speech_process_is_an_error_not_silence():
    with Synthesizer() as synthesizer:
        synthesizer.process.kill()
        synthesizer.process.wait()
        with pytest.raises(
            UserError, match="the speech process was killed by signal 9, perhaps because memory ran out"
        ):
            synthesizer.speak("One.", Voice())
