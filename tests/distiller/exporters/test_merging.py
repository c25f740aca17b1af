"""Averages of models: what they are, where they come from, and which models have none."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distiller import merge
from upstream.checkpoint import load, save
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder

SHAPE = EncoderConfig(
    embed_dim=16,
    num_heads=2,
    head_dim=8,
    attention_heads=((1,), None),
    ffn_dims=(7, 0),
    conv_layers=((8, 10, 5), (8, 8, 8), (16, 8, 8)),
)


def model(path: Path, seed: int, shape: EncoderConfig = SHAPE) -> SpeechEncoder:
    torch.manual_seed(seed)
    encoder = SpeechEncoder(shape)
    save(encoder, path, {"README.md": f"# model {seed}\n", "origin.json": '{"teacher": "facebook/hubert-x"}'})
    return encoder.eval()


def merging(*argv: str | Path) -> int:
    return merge.main([str(word) for word in argv])


@pytest.mark.parametrize(
    ("options", "shares"),
    [(["--alpha", "0.25"], [0.75, 0.25]), ([], [0.5, 0.5]), (["--weights", "1.5,-0.5"], [1.5, -0.5])],
)
def test_two_models_are_interpolated(options: list[str], shares: list[float], tmp_path: Path) -> None:
    first, second = (model(tmp_path / name, seed) for seed, name in enumerate("ab"))
    assert merging(tmp_path / "a", tmp_path / "b", *options, "--output", tmp_path / "c") == 0
    states = first.state_dict(), second.state_dict()
    for name, value in load(tmp_path / "c").state_dict().items():
        torch.testing.assert_close(value, shares[0] * states[0][name] + shares[1] * states[1][name])


def test_alpha_0_and_1_are_the_models_themselves(tmp_path: Path) -> None:
    models = [model(tmp_path / name, seed) for seed, name in enumerate("ab")]
    for alpha, encoder in enumerate(models):
        assert merging(tmp_path / "a", tmp_path / "b", "--alpha", alpha, "--output", tmp_path / "c") == 0
        merged = load(tmp_path / "c").state_dict()
        assert all(torch.equal(value, merged[name]) for name, value in encoder.state_dict().items())


def test_the_mean_of_three(tmp_path: Path) -> None:
    models = [model(tmp_path / name, seed) for seed, name in enumerate("abc")]
    assert merging(*(tmp_path / name for name in "abc"), "--output", tmp_path / "mean") == 0
    states = [encoder.state_dict() for encoder in models]
    for name, value in load(tmp_path / "mean").state_dict().items():
        torch.testing.assert_close(value, sum(state[name] for state in states) / 3)


def test_the_card_names_all_and_the_teacher_is_the_first_ones(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        model(tmp_path / name, seed)
    assert merging(tmp_path / "a", tmp_path / "b", "--alpha", "0.25", "--output", tmp_path / "c") == 0
    card = (tmp_path / "c" / "README.md").read_text()
    assert "Average of the weights of 2 models: 0.75 x `a`, 0.25 x `b`." in card
    assert "model 0" in card
    assert str(tmp_path) not in card
    assert json.loads((tmp_path / "c" / "origin.json").read_text()) == {"teacher": "facebook/hubert-x"}


def test_dropout_may_differ_and_shapes_may_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model(tmp_path / "a", 0)
    model(tmp_path / "dropout", 1, replace(SHAPE, hidden_dropout=0.1))
    assert merging(tmp_path / "a", tmp_path / "dropout", "--output", tmp_path / "c") == 0
    model(tmp_path / "pruned", 2, replace(SHAPE, ffn_dims=(6, 0)))
    capsys.readouterr()
    assert merging(tmp_path / "a", tmp_path / "pruned", "--output", tmp_path / "d") == 2
    names = f"{tmp_path / 'a'} and {tmp_path / 'pruned'}"
    said = f"error: {names} cannot be merged: they differ in ffn_dims ((7, 0) against (6, 0))\n"
    assert capsys.readouterr().err == said
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("a", "MODEL is 'a', but it must be followed by at least one other model"),
        ("a a", "MODEL is 'a', but it must be given only once; use --weights to give a model more weight"),
        ("a b c --alpha 0.5", "--alpha needs two models, not 3; give --weights"),
        ("a b --alpha 0.5 --weights 1,0", "--alpha and --weights cannot be combined; give one of them"),
        ("a b --alpha nan", "--alpha is nan, but it must be a finite number"),
        ("a b --weights 1", "--weights is [1.0], but it must be 2 numbers, one for each model"),
        ("a b --weights 0.5,0.6", "--weights is [0.5, 0.6], but it must be numbers that add up to 1"),
        ("a b --weights 0.5,nan", "--weights is [0.5, nan], but it must be numbers that add up to 1"),
    ],
)
def test_mistakes_are_one_line(argv: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert merging(*argv.split(), "--output", tmp_path / "out") == 2
    assert capsys.readouterr().err == f"error: {said}\n"
    assert not (tmp_path / "out").exists()
