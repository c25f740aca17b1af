"""A studio without a synthesiser, and a suite without s3prl: fast, for what depends on neither sound nor training."""

import zlib
from pathlib import Path

import numpy as np
import pytest

from downstream_recipes.miniature.make import make_with
from downstream_recipes.miniature.recordings import Studio
from downstream_recipes.suite.suite import Suite
from downstream_recipes.tasks.recipes import read_corpora
from tests.downstream_recipes.pretender import Pretender

SCALE = 0.05


def tones(utterance) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    """A tone per word, higher for odd speakers, and one phone: (sample,) int16 at 16 kHz."""
    words = utterance.text.lower().strip(".").split()
    pitch = 1.5 if int(utterance.speaker) % 2 else 1.0
    time = np.arange(4000) / 16000
    samples = np.concatenate(
        [np.sin(2 * np.pi * pitch * (200 + zlib.crc32(word.encode()) % 1800) * time) for word in words]
    )
    level = 10 ** (utterance.conditions.level / 20)
    noise = np.random.default_rng(utterance.conditions.seed).standard_normal(samples.size)
    mixture = level * (1.4 * samples + 0.05 * noise)
    return np.clip(32768 * mixture, -32768, 32767).astype(np.int16), [
        ("sil", 0, 0.01),
        ("K", 0.01, 0.2),
        ("AX", 0.2, 1),
    ]


@pytest.fixture(scope="session")
def studio() -> Studio:
    return Studio(tones, SCALE)


@pytest.fixture(scope="session")
def miniature(tmp_path_factory, studio) -> Path:
    """The corpora file of tiny corpora of every task."""
    return make_with(studio, tmp_path_factory.mktemp("corpora") / "miniature")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> Path:
    """No test touches the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SPEECH_DISTILLER_CACHE", str(folder))
    return folder / "superb"


@pytest.fixture
def pretender(monkeypatch) -> Pretender:
    pretender = Pretender()
    monkeypatch.setattr(Suite, "run", lambda suite, arguments, log: pretender(suite, arguments, log))
    monkeypatch.setattr(Suite, "_describe", lambda suite: {"states": 3, "parameters": 603_136})
    return pretender


@pytest.fixture
def suite(miniature, tmp_path, pretender) -> Suite:
    pretender.corpora = read_corpora(miniature)
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "model.safetensors").write_bytes(b"weights")
    student = str(tmp_path / "student")
    return Suite("starhubert", student, None, pretender.corpora, tmp_path / "out", "cpu")
