"""Preparing a corpus, and a prepared one, when files are damaged, processes killed or two at work."""

import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from distiller.audio.decoding import Decoder, Undecodable
from distiller.common.files import lock_folder, remove
from distiller.corpora.config import CorpusConfig
from distiller.corpora.corpus import open_corpus
from distiller.corpus import main
from distiller.preparation.prepare import prepare, verify
from tests.distiller.corpora.prepared_corpora import mixed_corpus, noise, snapshot
from upstream.errors import UserError

DECODER = Decoder(min_samples=400)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return mixed_corpus(tmp_path)


def test_damage_is_found_and_mended(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(corpus, out, ["train", "dev"], shard_seconds=1.5)
    intact = snapshot(out)
    archive = out / "train/recording.000001.tar"
    damaged = bytearray(archive.read_bytes())
    damaged[1_000] ^= 1
    archive.write_bytes(damaged)
    (out / "dev/cuts.000000.jsonl.gz").unlink()
    with pytest.raises(UserError, match=r"^2 of 4 shards are missing or damaged, the first of them .*000001"):
        verify(out)
    with pytest.raises(UserError, match=r"cuts.000000.jsonl.gz is missing or damaged; run the same"):
        open_corpus(CorpusConfig(str(out), ["train"], ["dev"]), DECODER)
    prepare(corpus, out, ["train", "dev"], shard_seconds=1.5)
    assert snapshot(out) == intact
    shutil.rmtree(corpus)
    prepare(corpus, out, ["train", "dev"], shard_seconds=1.5)  # nothing to do: the corpus is not needed
    for damage in (b"", b"{}", b"\0" * 100):
        (out / "preparation.json").write_bytes(damage)
        with pytest.raises(UserError, match=r"preparation.json cannot be read: it is damaged"):
            open_corpus(CorpusConfig(str(out), ["train"], ["dev"]), DECODER)


def in_child(work: Callable[[], object]) -> int:
    """The exit status of a process that does `work`: 0; 2 for a user's mistake, 1 for a crash; -9: killed."""
    return os.waitstatus_to_exitcode(os.waitpid(forked(work), 0)[1])


def forked(work: Callable[[], object]) -> int:
    """The id of a process that does `work` and ends with a status as `in_child` says."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except UserError:
            status = 2
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def killed_at_rename(times: int, work: Callable[[], object]) -> Callable[[], object]:
    """`work`, and `kill -9` when a file is about to get its name for the n-th time."""
    remaining = [times]

    def audit(event: str, _: tuple) -> None:
        remaining[0] -= event == "os.rename"
        if event == "os.rename" and remaining[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched() -> None:
        sys.addaudithook(audit)
        work()

    return watched


@pytest.mark.parametrize(
    ("raised", "status"), [(None, 0), (UserError("mend it"), 2), (ValueError("ours"), 1), (SystemExit(0), 1)]
)
def test_a_child_that_crashes_is_not_a_success(raised: BaseException | None, status: int, capfd) -> None:
    def work() -> None:
        if raised is not None:
            raise raised

    assert in_child(work) == status
    assert ("Traceback" in capfd.readouterr().err) == (status == 1)


def test_killed_at_every_rename(corpus: Path, tmp_path: Path) -> None:
    """Each of its files in turn; the preparation is continued and its result is the same."""
    out = tmp_path / "out"
    prepare(corpus, tmp_path / "whole", ["dev"], shard_seconds=2)
    for kills in range(20):
        status = in_child(
            killed_at_rename(kills + 1, lambda: prepare(corpus, out, ["dev"], workers=0, shard_seconds=2))
        )
        if status == 0:
            break
        assert status == -signal.SIGKILL
        if (out / "preparation.json").exists():
            with pytest.raises(UserError, match="is not complete; run the same"):
                open_corpus(CorpusConfig(str(out), ["dev"]), DECODER)
        prepare(corpus, out, ["dev"], shard_seconds=2)
        assert snapshot(out) == snapshot(tmp_path / "whole")
        remove(out)
    assert kills == 11  # preparation.json twice, two files of the scan, skipped.csv, three files of each of two shards


@pytest.mark.slow
def test_killed_while_workers_write(tmp_path: Path) -> None:
    """Finished shards are kept, and the outcome is that of a preparation that was never killed."""
    for index in range(240):
        noise(tmp_path / "noise" / f"{index:03d}.flac", 160_000 + index)

    def make(out: Path) -> None:
        prepare(tmp_path / "noise", out, workers=2, shard_seconds=50)

    whole, out = tmp_path / "whole", tmp_path / "out"
    make(whole)
    records = out / "records"
    child = forked(lambda: make(out))
    deadline = time.monotonic() + 120
    while len(list(records.glob("all.*.json"))) < 6 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in records.glob("all.*.json")}
    assert 6 <= len(kept) < 48
    make(out)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert snapshot(out) == snapshot(whole)


def test_a_worker_that_is_killed(corpus: Path, tmp_path: Path, monkeypatch) -> None:
    def killed(self, cut):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(Decoder, "decode", killed)
    with pytest.raises(UserError, match=r"^a worker process was killed, .* with fewer --workers$"):
        prepare(corpus, tmp_path / "out", ["train"], workers=1)
    monkeypatch.undo()
    prepare(corpus, tmp_path / "out", ["train"], workers=1)


def test_two_at_once(corpus: Path, tmp_path: Path, capfd) -> None:
    argv = ["prepare", str(corpus), "--output", str(tmp_path / "out")]
    with lock_folder(tmp_path / "out"):
        assert in_child(lambda: os._exit(main(argv))) == 2
    assert "is in use by another run" in capfd.readouterr().err


def test_decode_errors_still_have_reasons(corpus: Path, tmp_path: Path) -> None:
    """A prepared archive that is damaged while a run goes on."""
    prepare(corpus, tmp_path / "out", ["train"])
    cut = next(iter(open_corpus(CorpusConfig(str(tmp_path / "out"), ["train"]), DECODER).train))
    archive = tmp_path / "out/train/recording.000000.tar"
    archive.write_bytes(archive.read_bytes()[:1_000])
    with pytest.raises(Undecodable):
        DECODER.decode(cut)
    assert json.loads((tmp_path / "out/preparation.json").read_text())["shards"] == {"train": 1}
