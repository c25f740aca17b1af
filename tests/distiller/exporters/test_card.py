"""The model card of an export: where it comes from, and nothing that is not known."""

import json
from pathlib import Path

import pytest
import torch

from distiller.exporters.card import transformers_card
from distiller.exporters.fine_tuned import Student
from upstream.checkpoint import save
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder

SHAPE = EncoderConfig(embed_dim=16, num_heads=1, head_dim=16, attention_heads=((0,),), ffn_dims=(8,))
CARD = """\
# star student of facebook/hubert-base-ls960

| | |
|---|---|
| teacher | facebook/hubert-base-ls960 |
| teacher's licence | Apache-2.0 |
| audio | /data/LibriSpeech |
| recipe | star-hubert-960h, seed 0 |

![loss.png](loss.png)
"""


@pytest.fixture(scope="module")
def encoder() -> SpeechEncoder:
    torch.manual_seed(0)
    return SpeechEncoder(SHAPE)


@pytest.mark.parametrize("where", ["in the student", "in the run"])
def test_the_card_carries_teacher_data_licence_recipe_and_scores(
    where: str, encoder: SpeechEncoder, tmp_path: Path
) -> None:
    teacher = {"teacher": "facebook/hubert-base-ls960"}
    files = {"origin.json": json.dumps(teacher)} if where == "in the student" else {}
    if where == "in the run":
        (tmp_path / "report.json").write_text(json.dumps({"recipe": teacher}))
    save(encoder, tmp_path / "student", {"README.md": CARD, **files})
    (tmp_path / "scores.csv").write_text("upstream,task,metric,value,unit\nstar,pr,per,8.16,%\nstar,ks,acc,96.27,%\n")
    card = transformers_card(Student(encoder, str(tmp_path / "student")), own_code=False)
    head = card.split("---\n")[1]
    assert "license: apache-2.0\n" in head
    assert "base_model: facebook/hubert-base-ls960\n" in head
    assert "library_name: transformers\n" in head
    assert "/data" not in card  # a folder of another machine
    for line in (
        "| audio | LibriSpeech |",
        "star-hubert-960h, seed 0",
        "| pr | per | 8.16 |",
        "averages over the padding",
    ):
        assert line in card
    assert "loss.png" not in card  # it is not in the folder
    assert "### star student of" in card
    assert "trust_remote_code=True" not in card


def test_a_card_of_an_unknown_checkpoint_claims_nothing(encoder: SpeechEncoder, tmp_path: Path) -> None:
    card = transformers_card(Student(encoder, str(tmp_path / "pruned.pth")), own_code=True)
    assert "license: other\n" in card
    assert "base_model" not in card
    assert "trust_remote_code=True" in card
    assert "Exported from `pruned.pth`." in card
    assert "SUPERB" not in card
