"""A folder of synthetic speech: LANGUAGE/SPEAKER/ID.flac, and the texts in manifest.csv.

It is made speaker by speaker, each written atomically and determined by the seed, the language and its number alone:
repeating an interrupted command continues it, and asking for more hours or languages extends the folder.
"""

import io
import json
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count
from math import ceil
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import soundfile

from distiller.common.files import lock_folder, read_csv, sweep, write_csv, write_json, writing_folder
from distiller.common.progress import progress
from distiller.synthesis.espeak import Synthesizer
from distiller.synthesis.utterances import recording
from distiller.voices.speakers import random_conditions, random_prosody, random_speaker
from distiller.voices.texts import random_text, vocabulary
from upstream.config import SAMPLE_RATE
from upstream.errors import UserError, require

VERSION = 1  # increase when the same speaker would sound different
SPEAKER_SECONDS = 60.0  # each speaks at least this long
SHORTEST, LONGEST = 1.0, 12.0  # seconds of an utterance
MANIFEST, COLUMNS = "manifest.csv", ("id", "path", "language", "speaker", "seconds", "text")
SETTINGS = "synthesis.json"


def make_speech(output: Path, hours: float, languages: list[str], seed: int, workers: int | None = None) -> list[dict]:
    """Synthesise what is missing in a folder, alternating between languages.

    Args:
        languages: keys of ACCENTS.
        workers: synthesiser processes; one for each processor if None.

    Returns:
        The rows of the manifest.

    Raises:
        UserError: the folder cannot be written or was made with another seed; espeakng-loader or babel is missing.
    """
    for language in languages:
        vocabulary(language)
    speakers = ceil(hours * 3600 / SPEAKER_SECONDS)
    wanted = [(languages[index % len(languages)], index // len(languages)) for index in range(speakers)]
    folders = {output / language / f"{language}-{seed}-{number:04d}": (language, number) for language, number in wanted}
    with lock_folder(output):
        _check_settings(output, seed)
        sweep(output)
        missing = {folder: speaker for folder, speaker in folders.items() if not folder.is_dir()}
        _write(missing, seed, workers or os.cpu_count() or 1)
        rows = [row for folder in progress(sorted(output.glob("*/*/")), "Manifest") for row in _rows(folder, output)]
        write_csv(output / MANIFEST, rows, COLUMNS)
    return rows


def _check_settings(output: Path, seed: int) -> None:
    """A folder holds the speech of one seed and one version of this code."""
    path, settings = output / SETTINGS, {"version": VERSION, "seed": seed}
    if not path.exists():
        require(not any(entry.is_dir() for entry in output.iterdir()), "--output", str(output), "a new or empty folder")
        write_json(path, settings)
    try:
        found = dict(json.loads(path.read_text()))
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {error}; choose another --output") from error
    require(found.get("version") == VERSION, "--output", str(output), "a folder made by this version")
    require(found.get("seed") == seed, "--seed", seed, f"{found.get('seed')}, as when {output} was made")


def _rows(folder: Path, output: Path) -> list[dict[str, str]]:
    place = folder.relative_to(output)
    return [
        {"path": str(place / f"{row['id']}.flac"), "language": place.parts[0], "speaker": folder.name, **row}
        for row in read_csv(folder / "texts.csv")
    ]


def _write(folders: dict[Path, tuple[str, int]], seed: int, workers: int) -> None:
    """Synthesise these speakers: threads of this process turn the speech of espeak-ng processes into files."""
    with ExitStack() as stack:
        free: SimpleQueue[Synthesizer] = SimpleQueue()
        for _ in range(min(workers, len(folders))):
            free.put(stack.enter_context(Synthesizer()))
        pool = ThreadPoolExecutor(workers)
        stack.callback(pool.shutdown, cancel_futures=True)

        def write(item: tuple[Path, tuple[str, int]]) -> None:
            synthesizer = free.get()
            try:
                _write_speaker(*item, seed, synthesizer)
            finally:
                free.put(synthesizer)

        for _ in progress(pool.map(write, folders.items()), "Speakers", len(folders)):
            pass


def _write_speaker(folder: Path, speaker: tuple[str, int], seed: int, synthesizer: Synthesizer) -> None:
    rows: list[dict[str, Any]] = []
    spoken = 0.0
    with writing_folder(folder) as temporary:
        for text, samples in _utterances(*speaker, seed, synthesizer):
            name, seconds = f"{folder.name}-{len(rows):03d}", samples.size / SAMPLE_RATE
            file = io.BytesIO()  # soundfile itself reports a full disk poorly
            soundfile.write(file, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
            (temporary / f"{name}.flac").write_bytes(file.getvalue())
            rows.append({"id": name, "seconds": round(seconds, 4), "text": text})
            spoken += seconds
            if spoken >= SPEAKER_SECONDS:
                break
        write_csv(temporary / "texts.csv", rows)


def _utterances(language: str, number: int, seed: int, synthesizer: Synthesizer) -> Iterator[tuple[str, np.ndarray]]:
    """Texts of one speaker with (sample,) int16 at 16 kHz, without end; too short and too long ones are left out."""
    key = [seed, zlib.crc32(language.encode()), number]
    speaker = random_speaker(np.random.default_rng(key), language)
    for index in count():
        random = np.random.default_rng([*key, index])
        text = random_text(random, language)
        prosody, conditions = random_prosody(random, speaker), random_conditions(random, speaker)
        samples = recording(synthesizer.say(text, speaker.accent, speaker.voice, prosody), conditions)
        if SHORTEST <= samples.size / SAMPLE_RATE <= LONGEST:
            yield text, samples
