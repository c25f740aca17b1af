"""s3prl's own checkpoints: a fine-tuned upstream becomes a student again, and anything else is one line."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from distiller import export
from upstream.checkpoint import load, save
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder
from upstream.expert import UpstreamExpert

SHAPE: dict[str, Any] = {
    "embed_dim": 16,
    "num_heads": 2,
    "head_dim": 8,
    "attention_heads": ((1,), None),
    "ffn_dims": (7, 0),
    "conv_layers": ((8, 10, 5), (8, 8, 8), (16, 8, 8)),
}


@pytest.fixture
def student(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    files = {"README.md": "# a student\n\n| audio | LibriSpeech |\n", "origin.json": '{"teacher": "facebook/hubert-x"}'}
    save(SpeechEncoder(EncoderConfig(**SHAPE)), tmp_path / "student", files)
    return tmp_path / "student"


def dev_best(path: Path, student: Path | None, **changes: Any) -> UpstreamExpert | None:
    """Writes what s3prl's runner writes with `-f`, of a student whose every weight has changed."""
    expert = None if student is None else UpstreamExpert(student)
    states: dict[str, Any] = {
        "Optimizer": {"state": {}, "param_groups": []},
        "Step": 200,
        "Epoch": 3,
        "Args": Namespace(upstream_ckpt=str(student), upstream_model_config="states=all", downstream="speech_commands"),
        "Config": {"runner": {"total_steps": 200}},
        "Downstream": {"model.weight": torch.zeros(2, 2)},
        "Featurizer": {"weights": torch.zeros(3)},
    }
    if expert is not None:
        with torch.no_grad():
            for parameter in expert.parameters():
                parameter.add_(0.1)
        states["Upstream"] = expert.state_dict()
    states |= changes
    torch.save({name: value for name, value in states.items() if value is not None}, path)
    return expert


def exported(*argv: str | Path) -> int:
    return export.main([str(word) for word in argv])


def test_a_fine_tuned_upstream_becomes_a_student(student: Path, tmp_path: Path) -> None:
    expert = dev_best(tmp_path / "dev-best.ckpt", student)
    assert expert is not None
    assert exported(tmp_path / "dev-best.ckpt", "--to", "student", "--output", tmp_path / "tuned") == 0
    tuned = load(tmp_path / "tuned")
    assert tuned.config == load(student).config
    assert all(torch.equal(value, tuned.state_dict()[name]) for name, value in expert.encoder.state_dict().items())
    card = (tmp_path / "tuned" / "README.md").read_text()
    assert "Fine-tuned with s3prl on speech_commands, up to step 200." in card
    assert "| audio | LibriSpeech |" in card
    assert json.loads((tmp_path / "tuned" / "origin.json").read_text()) == {"teacher": "facebook/hubert-x"}
    assert str(tmp_path) not in card


def test_the_student_may_have_moved(student: Path, tmp_path: Path, capsys) -> None:
    dev_best(tmp_path / "dev-best.ckpt", student)
    student.rename(tmp_path / "moved")
    argv = (tmp_path / "dev-best.ckpt", "--to", "student", "--output", tmp_path / "tuned")
    assert exported(*argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "student does not exist" in error
    assert error.endswith("give it with --student\n")
    assert exported(*argv, "--student", tmp_path / "moved") == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"Upstream": None}, "contains no fine-tuned upstream, which s3prl stores only if it runs with -f"),
        ({"Upstream": {}}, "contains no fine-tuned upstream"),
        (
            {"Upstream": {"model.layers.0.weight": torch.zeros(1)}},
            "does not belong to this student: its upstream lacks encoder.",
        ),
        ({"Args": Namespace(downstream="ks")}, "does not name the student that was fine-tuned; give it with --student"),
    ],
)
def test_what_is_no_fine_tuned_student_is_one_line(changes, said, student: Path, tmp_path: Path, capsys) -> None:
    dev_best(tmp_path / "dev-best.ckpt", student, **changes)
    assert exported(tmp_path / "dev-best.ckpt", "--to", "student", "--output", tmp_path / "tuned") == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "tuned").exists()


def test_another_students_shapes_are_refused(student: Path, tmp_path: Path, capsys) -> None:
    dev_best(tmp_path / "dev-best.ckpt", student)
    save(SpeechEncoder(EncoderConfig(**{**SHAPE, "ffn_dims": (9, 0)})), tmp_path / "other")
    argv = (tmp_path / "dev-best.ckpt", "--to", "student", "--output", tmp_path / "tuned", "--student")
    assert exported(*argv, tmp_path / "other") == 2
    assert "has shape (7, 16), but must have (9, 16)" in capsys.readouterr().err


def test_the_original_is_not_replaced_and_code_is_not_run(student: Path, tmp_path: Path, capsys) -> None:
    dev_best(tmp_path / "dev-best.ckpt", student)
    assert exported(tmp_path / "dev-best.ckpt", "--to", "student", "--output", student) == 2
    assert "which is the student that was fine-tuned" in capsys.readouterr().err
    dev_best(tmp_path / "evil.ckpt", student, Epoch=print)
    assert exported(tmp_path / "evil.ckpt", "--to", "student", "--output", tmp_path / "tuned") == 2
    assert "its pickle is not weights only" in capsys.readouterr().err


def test_any_other_checkpoint_becomes_a_student_too(student: Path, tmp_path: Path, capsys) -> None:
    assert exported(student, "--to", "transformers", "--output", tmp_path / "export") == 0
    assert exported(tmp_path / "export", "--to", "student", "--output", tmp_path / "again") == 0
    assert load(tmp_path / "again").config == load(student).config
    assert exported(student, "--to", "student", "--output", tmp_path / "x", "--student", tmp_path / "again") == 2
    assert "--student needs an s3prl checkpoint" in capsys.readouterr().err
