"""How fast training's own data path reads each format: the same utterances as FLAC and WAV files, and prepared.

Without workers the figure is seconds of audio for each second of this process's CPU time, which other processes on the
machine hardly touch. With workers it is seconds of audio for each second of the clock, of a DataLoader as in training.
"""

import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from math import gcd
from pathlib import Path

import numpy as np
import soundfile
import torch
from lhotse.cut.data import DataCut
from scipy.signal import resample_poly
from torch.utils.data import DataLoader, Dataset

from distiller.audio.batch import Batch
from distiller.audio.dataset import load_batch
from distiller.audio.decoding import SAMPLE_RATE, decode
from distiller.common.files import expanded
from distiller.common.progress import progress
from distiller.corpora.config import EMBEDDED, CorpusConfig
from distiller.corpora.corpus import open_corpus
from distiller.corpora.prepare import prepare
from distiller.corpora.scanning import scan
from distiller.corpora.shards import FULL_SCALE
from distiller.reports.results import append
from upstream.errors import UserError

BATCH_SECONDS = 160.0
RATES = (SAMPLE_RATE, 44_100)
COLUMNS = ("format", "rate", "seconds", "mean_seconds", "workers", "realtime", "lowest", "highest", "bytes_per_second")


class Batches(Dataset[Batch]):
    """Batches of equal audio, of utterances of similar length, as training has them."""

    def __init__(self, cuts: list[DataCut]) -> None:
        self.cuts = sorted(cuts, key=lambda cut: cut.duration)
        self.groups: list[list[DataCut]] = [[]]
        for cut in self.cuts:
            if self.groups[-1] and (len(self.groups[-1]) + 1) * cut.duration > BATCH_SECONDS:
                self.groups.append([])
            self.groups[-1].append(cut)
        self.seconds = sum(cut.duration for cut in cuts)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Batch:
        return load_batch(self.groups[index], self.cuts, np.random.default_rng(index), min_samples=400)


def benchmark(
    corpus: Path | None, subsets: list[str], minutes: float, rounds: int, workers: int, table: Path | None
) -> None:
    """Print, and add to `table`, how fast each format is read; formats are read in turn, `rounds` times.

    Args:
        corpus: whose utterances are used; None: the embedded one.
        minutes: of audio.
        workers: of the loader; 0: none, and CPU time counts.

    Raises:
        UserError: as `open_corpus`; no room for the files in the system's temporary folder.
    """
    torch.set_num_threads(1)
    path = EMBEDDED if corpus is None else str(expanded(corpus).absolute())
    cuts = some(list(open_corpus(CorpusConfig(path=path, subsets=subsets)).train), 60 * minutes)
    with tempfile.TemporaryDirectory() as folder:
        try:
            formats = make_formats(cuts, Path(folder))
        except OSError as error:
            raise UserError(f"{folder} cannot be written: {error.strerror or error}") from error
        loaders = {name: loader(batches, workers) for name, (batches, _) in formats.items()}
        rates: dict[tuple[str, int], list[float]] = {name: [] for name in formats}
        for turn in progress(range(rounds + 1), "Reading"):
            for name, batches in loaders.items():
                rate = reading_rate(batches, time.perf_counter if workers else time.process_time)
                if turn:  # the first starts the workers
                    rates[name].append(rate)
    facts = identity()
    rows = []
    for (name, rate), measured in rates.items():
        batches, size = formats[name, rate]
        mean = batches.seconds / len(batches.cuts)
        figures = [statistics.median(measured), min(measured), max(measured), size / batches.seconds]
        values = [name, rate, round(batches.seconds), round(mean, 1), workers, *map(round, figures)]
        rows.append(facts | dict(zip(COLUMNS, values, strict=True)))
        unit = "s of the clock" if workers else "CPU s"
        print(f"{name:<14} {rate:>6} Hz  {figures[0]:>9,.0f} s of audio / {unit}  {figures[3] / 1000:>6.1f} kB/s")
    if table is not None:
        append(table, rows)


def some(cuts: list[DataCut], seconds: float) -> list[DataCut]:
    """Utterances of about so many seconds, spread evenly over the corpus."""
    step = max(1, int(sum(cut.duration for cut in cuts) / seconds))
    return cuts[::step]


def make_formats(cuts: list[DataCut], folder: Path) -> dict[tuple[str, int], tuple[Batches, int]]:
    """Batches and bytes by (format, rate): files of both kinds at both rates, and both prepared."""
    for cut in progress(cuts, "Writing the formats", len(cuts)):
        samples = decode(cut, min_samples=1).numpy()
        for rate in RATES:
            divisor = gcd(rate, SAMPLE_RATE)
            resampled = resample_poly(samples, rate // divisor, SAMPLE_RATE // divisor)
            values = np.rint(resampled * FULL_SCALE).clip(-FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
            for ending in ("flac", "wav"):
                path = folder / f"{ending}{rate}" / f"{cut.id}.{ending}"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, values, rate)
    made: dict[tuple[str, int], tuple[Batches, int]] = {}
    for ending in ("flac", "wav"):
        for rate in RATES:
            made[ending, rate] = opened(folder / f"{ending}{rate}")
    for ending in ("flac", "wav"):
        prepare(folder / f"flac{SAMPLE_RATE}", folder / f"prepared-{ending}", format=ending, workers=0)
        made[f"prepared {ending}", SAMPLE_RATE] = opened(folder / f"prepared-{ending}")
    return made


def opened(folder: Path) -> tuple[Batches, int]:
    """Batches of a folder's audio, and the bytes of it on the disk."""
    cuts = [cut for cut in scan(folder, folder)[0] if isinstance(cut, DataCut)]
    return Batches(cuts), sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def loader(batches: Batches, workers: int) -> "DataLoader[Batch]":
    """As training's; its workers live from one pass to the next."""
    prefetch = 4 if workers else None
    return DataLoader(
        batches, batch_size=None, num_workers=workers, prefetch_factor=prefetch, persistent_workers=workers > 0
    )


def reading_rate(batches: "DataLoader[Batch]", clock: Callable[[], float]) -> float:
    """Seconds of audio in a pass for each second that it takes."""
    started = clock()
    samples = sum(int(batch.lengths.sum()) for batch in batches)
    return samples / SAMPLE_RATE / (clock() - started)


def identity() -> dict[str, str]:
    """What a row of docs/results says of how it was made."""
    from distiller.common.provenance import commit, machine

    command = shlex.join(["python", "distiller/corpus.py", *sys.argv[1:]])
    finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"command": command, "commit": commit(), "finished": finished, "machine": machine()}
