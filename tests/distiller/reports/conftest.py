"""A report.json as a run writes it."""

import pytest


@pytest.fixture
def result() -> dict:
    row = {"phone": 50.0, "phone_unseen": 49.0, "phone_best": 51.0, "speaker": 40.0, "speaker_best": 44.0}
    names = ("filterbank", "stacked_filterbank", "random", "teacher", "student")
    return {
        "recipe": {"method": "star", "seed": 1, "teacher": "facebook/hubert-base-ls960", "corpus": {"path": "/data"}}
        | {"objective": {"name": "star", "scaling": "centred"}, "pruning": None},
        "command": "python distiller/run.py --method star --corpus '/my data' --output=mine --overwrite seed=1",
        "commit": "abc",
        "seconds": 61.2,
        "peak_rss_mb": 900,
        "parameters": 1_234_567,
        "macs_10s": 2_000_000_000,
        "losses": {"train": {"step": 10, "loss": 1.0}, "held_out": {"step": 10, "loss": 0.5}},
        "skipped": 3,
        "probe": {name: {**row, "phone": 10.0 * index} for index, name in enumerate(names)},
        "retention": {"phone": 0.5, "phone_unseen": None, "phone_best": 0.25},
    }
