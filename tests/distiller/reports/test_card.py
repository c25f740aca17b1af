"""The model card of a student."""

import json
from pathlib import Path

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
