"""A studio without a synthesiser, and a suite without s3prl: fast, for tests that need neither speech nor training."""

import csv
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from downstream_recipes.miniature.make import make_with
from downstream_recipes.miniature.recordings import Studio
from downstream_recipes.suite.suite import Suite
from downstream_recipes.tasks.recipes import read_corpora
from tests.downstream_recipes.pretender import Pretender
from upstream.checkpoint import save
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder

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
    return Suite("starhubert", student, None, miniature, tmp_path / "out", "cpu")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """Fluent Speech Commands of two tones, and a tiny student."""
    rng = np.random.default_rng(0)
    wavs = tmp_path / "fluent" / "wavs" / "speakers" / "s"
    wavs.mkdir(parents=True)
    (tmp_path / "fluent" / "data").mkdir()
    for split, count in (("train", 8), ("valid", 4), ("test", 4)):
        rows = [["", "path", "speakerId", "transcription", "action", "object", "location"]]
        for index in range(count):
            tone = 0.3 * np.sin(2 * np.pi * 300 * (1 + index % 2) * np.arange(8000) / 16000)
            soundfile.write(wavs / f"{split}{index}.wav", tone + 0.01 * rng.standard_normal(8000), 16000)
            action = ("increase", "decrease")[index % 2]
            rows.append([str(index), f"wavs/speakers/s/{split}{index}.wav", "s", "words", action, "volume", "none"])
        with (tmp_path / "fluent" / "data" / f"{split}_data.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    (tmp_path / "corpora.yaml").write_text("fluent_commands: fluent\nworkers: 0\n")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = EncoderConfig(
        embed_dim=48,
        num_heads=4,
        head_dim=12,
        attention_heads=((0, 1, 2, 3),) * 3,
        ffn_dims=(64,) * 3,
        conv_layers=((16, 10, 5), (24, 1, 1), *((24, 3, 2),) * 4, (40, 2, 2), (40, 2, 2)),
        positional_kernel=16,
        positional_groups=4,
    )
    save(SpeechEncoder(config), tmp_path / "student")
    return tmp_path
