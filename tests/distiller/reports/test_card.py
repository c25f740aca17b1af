"""The model card of a student."""

import json
from pathlib import Path

from distiller.audio.inventory import Amount, Inventory
from distiller.reports.card import files, model_card


def test_the_card_names_teacher_licence_corpus_and_scores(result: dict) -> None:
    card = model_card(result, ["loss.png"])
    assert "| teacher | facebook/hubert-base-ls960 |\n| teacher's licence | Apache-2.0 |" in card
    assert "| student | 40.0 | 49.0 | 40.0 |" in card
    assert "![loss.png](loss.png)" in card


def test_a_student_carries_its_card_its_figures_and_its_teacher(result: dict, tmp_path: Path) -> None:
    (tmp_path / "loss.png").write_bytes(b"a figure")
    carried = files(tmp_path, result)
    assert carried["README.md"] == model_card(result, ["loss.png"])
    assert carried["loss.png"] == b"a figure"
    assert json.loads(carried["origin.json"]) == {"teacher": "facebook/hubert-base-ls960"}


def test_the_card_says_what_was_left_out(result: dict) -> None:
    inventory = Inventory(
        Amount(9, 90), Amount(), 0, Amount(), Amount(1, 36), 0, {}, min_seconds=0, longest=18, window_seconds=None
    )
    card = model_card(result | {"corpus": inventory.to_dict()}, [])
    assert (
        "| left out | 1 recording (0.01 hours) longer than 18 s (corpus.window_seconds=20 would split them) |" in card
    )
