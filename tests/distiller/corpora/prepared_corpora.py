"""A corpus of every kind of file that preparing it treats differently, and what a prepared one is compared by."""

from pathlib import Path

import numpy as np
import soundfile


def noise(path: Path, samples: int, rate: int = 16_000, channels: int = 1, **keys: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(samples).normal(0, 0.1, (samples, channels))
    soundfile.write(path, values, rate, **keys)
    return path


def mixed_corpus(folder: Path) -> Path:
    """Two subsets of six files each, of every kind that differs here."""
    folder = folder / "data" / "LibriSpeech"
    for subset in ("train", "dev"):
        noise(folder / subset / "1/a.flac", 9_000)
        noise(folder / subset / "1/b.wav", 14_001)
        noise(folder / subset / "2/stereo.wav", 8_000, channels=2)
        noise(folder / subset / "2/float.wav", 12_000, subtype="FLOAT")
        noise(folder / subset / "other.flac", 22_051, rate=44_100)
        noise(folder / subset / "other.ogg", 12_345, rate=22_050)
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file but the scan, whose compression notes the time."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "scan"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
