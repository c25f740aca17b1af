"""Utterances to audio files and Lhotse cuts, in shards that are written atomically.

An interrupted run continues with the missing shards, and repeating a finished one costs nothing. The bytes depend only
on the utterances, not on the number of processes.
"""

import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from itertools import chain, cycle, islice
from pathlib import Path

import soundfile
from lhotse import AudioSource, CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.cut.data import DataCut
from lhotse.supervision import AlignmentItem

from distiller.common.files import lock_folder, sweep, writing_folder
from distiller.common.progress import progress
from distiller.common.values import digest
from distiller.synthesis.espeak import Phone, Synthesizer
from distiller.synthesis.utterances import Utterance, render
from upstream.config import SAMPLE_RATE
from upstream.errors import UserError

VERSION = 3  # increase when the same Utterance would sound different
SHARD_SIZE = 50


def synthesise(
    utterances: Sequence[Utterance], directory: Path, *, shard_size: int = SHARD_SIZE, workers: int | None = None
) -> list[DataCut]:
    """Synthesise the utterances that are missing in `directory`.

    Each shard is a folder named by its number and a digest of its utterances. It holds a FLAC file for each utterance,
    and cuts.jsonl with relative paths.

    Args:
        workers: synthesiser processes; one for each processor if None.

    Returns:
        One cut per utterance, in order, with absolute paths; its supervision has speaker, text and alignment["phone"].

    Raises:
        UserError: the directory cannot be written, a shard cannot be read, or espeakng-loader is missing.
    """
    directory = directory.absolute()
    parts = [utterances[first : first + shard_size] for first in range(0, len(utterances), shard_size)]
    shards = {
        directory / f"{index:05d}-{digest([VERSION, [asdict(utterance) for utterance in part]])[:16]}": part
        for index, part in enumerate(parts)
    }
    if not all(map(os.path.isdir, shards)):
        with lock_folder(directory, wait=True):
            sweep(directory)
            missing = {shard: part for shard, part in shards.items() if not shard.is_dir()}
            _write(missing, workers or os.cpu_count() or 1)
    return list(chain.from_iterable(map(_read, shards)))


def _write(shards: dict[Path, Sequence[Utterance]], workers: int) -> None:
    """Synthesise these shards: threads of this process turn the speech of espeak-ng processes into files."""
    utterances = list(chain.from_iterable(shards.values()))
    with ExitStack() as stack:
        synthesizers = [stack.enter_context(Synthesizer()) for _ in range(min(workers, len(utterances)))]
        pool = ThreadPoolExecutor(workers)
        stack.callback(pool.shutdown, cancel_futures=True)
        recorded = pool.map(_record, utterances, cycle(synthesizers))

        def write() -> Iterator[None]:
            for shard, part in shards.items():
                with writing_folder(shard) as folder:
                    cuts = []
                    for cut, audio in islice(recorded, len(part)):
                        (folder / f"{cut.id}.flac").write_bytes(audio)
                        cuts.append(cut)
                        yield
                    CutSet.from_cuts(cuts).to_file(folder / "cuts.jsonl")

        for _ in progress(write(), "Synthesising speech", len(utterances)):
            pass


def _record(utterance: Utterance, synthesizer: Synthesizer) -> tuple[MonoCut, bytes]:
    samples, phones = render(utterance, synthesizer)
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return _cut(utterance, samples.size, phones), file.getvalue()


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


def _read(shard: Path) -> Iterator[DataCut]:
    try:
        cuts = CutSet.from_file(shard / "cuts.jsonl").to_eager()
    except (OSError, ValueError) as error:
        raise UserError(
            f"the synthetic speech in {shard} cannot be read: {error}; remove that folder to have it made again"
        ) from error
    yield from cuts.with_recording_path_prefix(shard)  # type: ignore[misc]  # Lhotse declares the base class of cuts
