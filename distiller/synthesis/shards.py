"""Utterances to audio files and Lhotse cuts, in shards that appear whole or not at all.

An interrupted run continues with the shards it lacks, and a finished one costs nothing to repeat. The bytes depend on
the utterances alone, however many processes share the work.
"""

import hashlib
import io
import json
import os
import queue
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import soundfile
from lhotse import AudioSource, CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.supervision import AlignmentItem
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from distiller.common.files import disk_errors, lock_folder
from distiller.synthesis.espeak import SAMPLE_RATE, Phone, Synthesizer
from distiller.synthesis.utterances import Utterance, render
from upstream.errors import UserError
from upstream.files import sync_directory, write_synced

VERSION = 3  # raise it when the same Utterance would sound different
SHARD_SIZE = 50
UNFINISHED = ".unfinished-"  # begins the names of shards being written
HINT = "; SPEECH_DISTILLER_CACHE names another directory"


def synthesise(
    utterances: Sequence[Utterance],
    directory: Path,
    *,
    shard_size: int = SHARD_SIZE,
    progress: bool = True,
    workers: int | None = None,
) -> CutSet:
    """Say the utterances into `directory`, or what of them is missing there.

    Each shard is a directory, named by its number and a digest of its utterances, of one FLAC file per utterance and
    cuts.jsonl, whose paths are relative.

    Returns:
        one cut per utterance, in order, with absolute paths, speaker, text and alignment["phone"] in its supervision.

    Raises:
        UserError: the directory cannot be written, a shard cannot be read, or espeakng-loader is missing.
    """
    directory = directory.absolute()
    parts = [utterances[first : first + shard_size] for first in range(0, len(utterances), shard_size)]
    shards = {directory / f"{index:05d}-{_digest(part)}": part for index, part in enumerate(parts)}
    if not all(map(os.path.isdir, shards)):
        with disk_errors(directory, hint=HINT), lock_folder(directory, wait=True):
            for unfinished in directory.glob(f"{UNFINISHED}*"):  # whoever wrote there is dead
                shutil.rmtree(unfinished)
            _make({shard: part for shard, part in shards.items() if not os.path.isdir(shard)}, progress, workers)
    return CutSet.from_cuts(chain.from_iterable(_read(shard) for shard in shards))


def _make(shards: dict[Path, Sequence[Utterance]], progress: bool, workers: int | None) -> None:
    """Synthesise these shards; threads of this process write what processes of espeak-ng's say."""
    workers = min(workers or os.cpu_count() or 1, len(shards))
    if not shards:
        return
    with ExitStack() as stack:
        idle: queue.SimpleQueue[Synthesizer] = queue.SimpleQueue()
        for _ in range(workers):
            idle.put(stack.enter_context(Synthesizer()))
        bar = stack.enter_context(_progress(progress))
        name = next(iter(shards)).parent.name
        task = bar.add_task(f"Synthesising {name}", total=sum(map(len, shards.values())))
        pool = stack.enter_context(ThreadPoolExecutor(workers))

        def make(shard: Path) -> None:
            synthesizer = idle.get()
            try:
                _write(shard, _recorded(shards[shard], synthesizer, lambda: bar.advance(task)))
            finally:
                idle.put(synthesizer)

        futures = [pool.submit(make, shard) for shard in shards]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _progress(wanted: bool) -> Progress:
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not (wanted and console.is_terminal))


def _recorded(
    utterances: Sequence[Utterance], synthesizer: Synthesizer, done: Callable[[], None]
) -> Iterator[tuple[MonoCut, bytes]]:
    """Each utterance's cut and FLAC file."""
    for utterance in utterances:
        samples, phones = render(utterance, synthesizer)
        file = io.BytesIO()
        soundfile.write(file, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        yield _cut(utterance, samples.size, phones), file.getvalue()
        done()


def _cut(utterance: Utterance, count: int, phones: list[Phone]) -> MonoCut:
    name, duration = utterance.id, count / SAMPLE_RATE
    alignment = [AlignmentItem(symbol, start, round(end - start, 4)) for symbol, start, end in phones]
    supervision = SupervisionSegment(
        id=name,
        recording_id=name,
        start=0.0,
        duration=duration,
        text=utterance.text,
        language="English",
        speaker=utterance.speaker,
        alignment={"phone": alignment},
    )
    source = AudioSource(type="file", channels=[0], source=f"{name}.flac")
    recording = Recording(name, [source], SAMPLE_RATE, count, duration)
    return MonoCut(name, 0.0, duration, 0, [supervision], recording=recording)


def _write(shard: Path, recorded: Iterator[tuple[MonoCut, bytes]]) -> None:
    """All of a shard or nothing: beside its final name, to the disk, then renamed."""
    with disk_errors(shard.parent):
        unfinished = Path(tempfile.mkdtemp(dir=shard.parent, prefix=UNFINISHED))
        try:
            unfinished.chmod(0o755)  # mkdtemp's is private, a cache may be shared
            manifest = ""
            for cut, audio in recorded:
                write_synced(unfinished / f"{cut.id}.flac", audio)
                manifest += json.dumps(cut.to_dict()) + "\n"
            write_synced(unfinished / "cuts.jsonl", manifest.encode())
            sync_directory(unfinished)
            os.rename(unfinished, shard)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        sync_directory(shard.parent)


def _read(shard: Path) -> Iterator[MonoCut]:
    try:
        lines = (shard / "cuts.jsonl").read_text(encoding="utf-8").splitlines()
        manifests = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read the synthetic speech in {shard}: {error}; without {shard} it is made anew"
        ) from error
    for manifest in manifests:
        cut = MonoCut.from_dict(manifest).with_recording_path_prefix(shard)
        assert isinstance(cut, MonoCut)  # Lhotse declares its base class
        yield cut


def _digest(utterances: Sequence[Utterance]) -> str:
    content = json.dumps([VERSION, [asdict(utterance) for utterance in utterances]])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
