"""How fast training's data path reads each format: the same utterances as FLAC and WAV files, and prepared.

Without workers the figure is seconds of audio per second of this process's CPU time, which other processes on the
machine hardly affect. With workers it is seconds of audio per second of wall-clock time, with a DataLoader as in
training.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from operator import call
from pathlib import Path

import numpy as np
import soundfile
import torch
from lhotse.cut.data import DataCut
from scipy.signal import resample_poly
from torch.utils.data import DataLoader

from distiller.audio.batch import Batch
from distiller.audio.dataset import validation_batches
from distiller.audio.decoding import Decoder
from distiller.common.files import disk_errors, expanded, read_csv, write_csv
from distiller.common.progress import progress
from distiller.common.provenance import command_line, commit, machine
from distiller.common.workers import batch_bytes, loader_options, lost_workers
from distiller.corpora.config import SYNTHETIC, CorpusConfig
from distiller.corpora.corpus import open_corpus
from distiller.corpora.scanning import scan
from distiller.preparation.prepare import prepare
from distiller.preparation.shards import FULL_SCALE
from distiller.synthesis.splits import RECEPTIVE_FIELD
from upstream.config import SAMPLE_RATE

BATCH_SECONDS = 160.0
DECODER = Decoder(RECEPTIVE_FIELD)
RATES = (SAMPLE_RATE, 44_100)
COLUMNS = ("format", "rate", "seconds", "mean_seconds", "workers", "realtime", "lowest", "highest", "bytes_per_second")


def benchmark(
    corpus: Path | None, subsets: list[str], minutes: float, rounds: int, workers: int, table: Path | None
) -> None:
    """Print, and add to `table`, how fast each format is read; formats take turns, `rounds` times.

    Args:
        corpus: the source of utterances; None: the synthetic one.
        minutes: of audio.
        workers: of the loader; 0: none, and CPU time is measured.

    Raises:
        UserError: as `open_corpus`; the system's temporary folder has no room for the files.
    """
    torch.set_num_threads(1)
    path = SYNTHETIC if corpus is None else str(expanded(corpus).absolute())
    cuts = open_corpus(CorpusConfig(path=path, subsets=subsets), DECODER).train
    seconds = sum(cut.duration for cut in cuts)
    cuts = cuts[:: max(1, int(seconds / (60 * minutes)))]  # spread evenly over the corpus
    with tempfile.TemporaryDirectory() as name, disk_errors(Path(name)), lost_workers("--workers"):
        formats = write_formats(cuts, Path(name))
        loaders = {key: loader(scan(folder, folder)[0], workers) for key, folder in formats.items()}
        sizes = {key: bytes_of(folder) for key, folder in formats.items()}
        rates: dict[tuple[str, int], list[float]] = {key: [] for key in formats}
        for turn in progress(range(rounds + 1), "Reading"):
            for key, batches in loaders.items():
                rate = reading_rate(batches, time.perf_counter if workers else time.process_time)
                if turn:  # the first starts the workers
                    rates[key].append(rate)
    finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    identity = {"command": command_line("corpus"), "commit": commit(), "finished": finished, "machine": machine()}
    seconds = sum(cut.duration for cut in cuts)
    rows = []
    for (name, rate), measured in rates.items():
        figures = [statistics.median(measured), min(measured), max(measured), sizes[name, rate] / seconds]
        values = [name, rate, round(seconds), round(seconds / len(cuts), 1), workers, *map(round, figures)]
        rows.append(identity | dict(zip(COLUMNS, values, strict=True)))
        unit = "wall-clock s" if workers else "CPU s"
        print(f"{name:<14} {rate:>6} Hz  {figures[0]:>9,.0f} s of audio / {unit}  {figures[3] / 1000:>6.1f} kB/s")
    if table is not None:
        write_csv(table, [*read_csv(table), *rows])


def write_formats(cuts: list[DataCut], folder: Path) -> dict[tuple[str, int], Path]:
    """Folders by (format, rate): files in both formats at both rates, and both formats prepared."""
    formats = {(ending, rate): folder / f"{ending}{rate}" for ending in ("flac", "wav") for rate in RATES}
    for cut in progress(cuts, "Writing the formats", len(cuts)):
        samples = DECODER.decode(cut).numpy()
        for (ending, rate), target in formats.items():
            resampled = resample_poly(samples, rate, SAMPLE_RATE)
            values = np.rint(resampled * FULL_SCALE).clip(-FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
            path = target / f"{cut.id}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, values, rate)
    source = formats["flac", SAMPLE_RATE]
    for ending in ("flac", "wav"):
        formats[f"prepared {ending}", SAMPLE_RATE] = folder / f"prepared-{ending}"
        prepare(source, folder / f"prepared-{ending}", format=ending, workers=0)
    return formats


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def loader(cuts: list[DataCut], workers: int) -> "DataLoader[Batch]":
    """Batches of utterances of similar length, read as in training; its workers persist between passes."""
    batches = validation_batches(cuts, BATCH_SECONDS, DECODER)
    options = loader_options(workers, batch_bytes(BATCH_SECONDS), len(RATES) * 3, "--workers")
    return DataLoader(
        batches,  # type: ignore[arg-type]
        batch_size=None,
        collate_fn=call,  # type: ignore[arg-type]
        persistent_workers=options["num_workers"] > 0,
        **options,
    )


def reading_rate(batches: "DataLoader[Batch]", clock: Callable[[], float]) -> float:
    """Seconds of audio per second of a pass."""
    started = clock()
    samples = sum(int(batch.lengths.sum()) for batch in batches)
    return samples / SAMPLE_RATE / (clock() - started)
