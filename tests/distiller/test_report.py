import json
from pathlib import Path

import pytest

from distiller.card import model_card
from distiller.report import print_report


@pytest.fixture
def result() -> dict:
    row = {"phone": 50.0, "phone_unseen": 49.0, "phone_best": 51.0, "speaker": 40.0, "speaker_best": 44.0}
    names = ("filterbank", "stacked_filterbank", "random", "teacher", "student")
    return {
        "recipe": {"method": "star", "seed": 1, "teacher": "facebook/hubert-base-ls960", "corpus": {"path": "/data"}}
        | {"objective": {"name": "star"}},
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


def test_the_table_has_every_row_the_places_and_what_comes_next(
    result: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.json").write_text(json.dumps(result))
    (tmp_path / "loss.png").touch()
    print_report(tmp_path)
    printed = capsys.readouterr().out
    lines = {line.split("  ")[1].strip(): line.split() for line in printed.splitlines() if line.startswith("  ")}
    assert lines["star student"][-5:] == ["40.0", "49.0", "51.0", "40.0", "44.0"]
    assert lines["log-mel, ±12 frames"][-5:] == ["10.0", "49.0", "51.0", "40.0", "44.0"]
    assert lines["retention"][-2:] == ["0.50", "0.25"]
    assert (
        "1,234,567 parameters, 2.00 G MACs for 10 s, 61 s, peak 900 MB, held-out loss 0.5, 3 files skipped" in printed
    )
    assert f"{tmp_path / 'student'}" in printed
    assert "phones.png" not in printed
    assert f"python distiller/run.py --method star --output {tmp_path}-raw objective.scaling=none" in printed


def test_the_card_names_teacher_licence_corpus_and_scores(result: dict) -> None:
    card = model_card(result, ["loss.png"])
    assert "| teacher | facebook/hubert-base-ls960 |\n| teacher's licence | Apache-2.0 |" in card
    assert "| student | 40.0 | 49.0 | 40.0 |" in card
    assert "![loss.png](loss.png)" in card
