"""Audio to calibrate on."""

from pathlib import Path

import numpy as np
import pytest
import soundfile


@pytest.fixture(scope="session")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audio")
    generator = np.random.default_rng(0)
    for index in range(12):
        soundfile.write(folder / f"{index}.wav", 0.1 * generator.standard_normal(8000 + 400 * index), 16_000)
    return folder
