"""One objective for several teachers: what their mean is, and how recipes ask for it."""

import csv
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distiller import run
from distiller.objectives.base import Objective
from distiller.objectives.config import LayersConfig, StarConfig
from distiller.objectives.registry import build
from distiller.recipes.recipe import load_recipe
from distiller.teachers.config import TeacherConfig
from distiller.teachers.several import Target, build_for, teacher_names
from tests.distiller.conftest import TEACHER, SmallRun
from tests.distiller.objectives.outputs import ALL_TERMS, encoder_config, frame_mask_of, random_output
from upstream.checkpoint import load, save
from upstream.config import EncoderConfig
from upstream.encoder import EncoderOutput, SpeechEncoder
from upstream.errors import UserError

MASK = frame_mask_of(60, 41)
WIDE = EncoderConfig(
    embed_dim=40, num_heads=2, head_dim=20, attention_heads=((0, 1),) * 3, ffn_dims=(32,) * 3,
    conv_layers=((8, 10, 5), *((8, 3, 2),) * 4, (8, 2, 2), (16, 2, 2)), positional_kernel=8, positional_groups=4,
)  # fmt: skip
TWO = "teachers=[{path: teacher, weight: 3}, {path: wide, layers: [1, 3]}]"


def outputs(gradient: bool = True) -> tuple[list[EncoderOutput], EncoderOutput]:
    """Two teachers, of other widths and head counts, and a student."""
    return [random_output(1, 8, 4, MASK), random_output(2, 12, 3, MASK)], random_output(5, 6, 2, MASK, gradient)


def gradients(total: Tensor, student: EncoderOutput) -> list[Tensor]:
    maps = [weights for weights in student.attention_maps or [] if weights is not None]
    found = torch.autograd.grad(total, [*student.hidden_states, *maps], allow_unused=True, materialize_grads=True)
    return [gradient.masked_fill(~MASK[..., None], 0.0) if gradient.ndim == 3 else gradient for gradient in found]


def loss(objective: Objective, teachers: object, student: EncoderOutput) -> Tensor:
    return torch.stack([term.weight * term.total for term in objective(teachers, student, MASK)]).sum()


def normalised_gram(states: Tensor, keys: Tensor) -> Tensor:
    """One utterance's centred Gram matrix of unit Frobenius norm, written out."""
    gram = (states - states.mean(dim=0)) @ (keys - keys.mean(dim=0)).T
    return gram / gram.norm()


def test_star_has_the_gradient_of_the_mean_of_normalised_gram_matrices() -> None:
    config = StarConfig(scaling="centred", identity="never")
    teachers, student = outputs()
    targets = [Target(config, encoder_config(), "a", 3.0), Target(config, encoder_config(), "b", 1.0)]
    found = gradients(loss(build_for(targets, encoder_config()), teachers, student), student)

    expected = torch.zeros((), dtype=torch.float64)
    for row, length in enumerate(MASK.sum(dim=1).tolist()):
        states = [[layer[row, :length] for layer in output.hidden_states] for output in (*teachers, student)]
        for lag in (0, 1):
            for layer in range(1, len(states[0])):
                first, second, own = (normalised_gram(each[layer - lag], each[layer]) for each in states)
                expected = expected + (0.75 * first + 0.25 * second - own).square().sum()
    for ours, written_out in zip(found, gradients(expected, student), strict=True):
        torch.testing.assert_close(ours, written_out, atol=1e-9, rtol=1e-6)
    assert float(found[0].abs().max()) > 1e-4


def test_attention_has_the_gradient_of_the_mean_map() -> None:
    config = StarConfig(last_attention=1.0, layer_wise=0.0, intra_layer=0.0)
    teachers, student = outputs()
    targets = [Target(config, encoder_config(), "a", 1.0), Target(config, encoder_config(), "b", 1.0)]
    objective = build_for(targets, encoder_config())
    assert objective.needs_attention_maps
    first, second = ((teacher.attention_maps or [])[-1] for teacher in teachers)
    assert first is not None
    assert second is not None
    mean = teachers[0].cut(60)
    mean.attention_maps = [None, None, 0.5 * (first.mean(1, keepdim=True) + second.mean(1, keepdim=True))]
    expected = gradients(loss(build(config, encoder_config(), encoder_config()), mean, student), student)
    for ours, single in zip(gradients(loss(objective, teachers, student), student), expected, strict=True):
        torch.testing.assert_close(ours, single)


def test_terms_are_named_after_their_teacher_and_share_the_weight() -> None:
    config = StarConfig(**ALL_TERMS, scaling="unit")
    targets = [Target(config, encoder_config(), "a", 3.0), Target(config, encoder_config(), "b", 1.0)]
    teachers, student = outputs(gradient=False)
    terms = build_for(targets, encoder_config())(teachers, student, MASK)
    assert [(term.name, term.weight) for term in terms] == [
        *((f"a.{name}", 0.75) for name in ALL_TERMS),
        *((f"b.{name}", 0.25) for name in ALL_TERMS),
    ]


def test_each_teacher_has_its_own_projections() -> None:
    config = LayersConfig(layers=[1, 3])
    targets = [Target(config, encoder_config(width=8), "a"), Target(config, encoder_config(width=12), "b")]
    objective = build_for(targets, encoder_config(width=6))
    shapes = [tuple(p.shape) for name, p in objective.named_parameters() if name.endswith("weight")]
    assert shapes == [(8, 6), (12, 6)]


# --- recipes


def test_the_first_of_the_teachers_is_the_teacher() -> None:
    recipe = load_recipe("star", ["teachers=[some/model, {path: bundled, weight: 0.5, layers: [2]}]"])
    assert recipe.teacher == "some/model"
    assert recipe.teachers == [TeacherConfig("some/model"), TeacherConfig("bundled", 0.5, [2])]
    assert load_recipe("star", ["teacher=other/model"]).all_teachers == [TeacherConfig("other/model")]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["teachers=[bundled, a/b]", "teacher=a/b"], "teacher is 'a/b', but it must be left out when teachers is set"),
        (["teachers=bundled"], "teachers is 'bundled', but it must be a list of paths, or of sections"),
        (["teachers=[{weight: 2}]"], "teachers[0].path is not set"),
        (["teachers=[bundled, {path: a/b, weight: 0}]"], "teachers[1].weight is 0.0, but it must be a number above 0"),
        (["teachers=[{path: a/b, wieght: 1}]"], "teachers[0].wieght is not a recipe key; it could be "),
        (
            ["teachers=[{path: bundled, layers: [2]}]", "objective=units"],
            "teachers[0].layers is [2], but it must be left out, since the objective compares no layers",
        ),
        (
            ["teachers=[bundled, a/b]", "objective.scaling=none"],
            "objective.scaling is 'none', but it must be centred or unit with several teachers",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("star", overrides)
    assert str(caught.value).startswith(message)


def test_a_run_with_two_teachers(small_run: SmallRun) -> None:
    torch.manual_seed(1)
    save(SpeechEncoder(WIDE), "wide")
    options = ("objective.scaling=centred", "student.layers=2")
    report, _ = small_run.completes(TWO, *options)
    assert load("run/student").config.embed_dim == TEACHER.embed_dim
    with Path("run/metrics.csv").open() as file:
        columns = next(csv.reader(file))
    assert {f"term/{name}.{term}" for name in ("teacher", "wide") for term in ("layer_wise", "intra_layer")} <= set(
        columns
    )
    assert json.loads(Path("run/student/origin.json").read_text()) == {"teachers": ["teacher", "wide"]}
    assert "Distilled from `teacher` and `wide`" in Path("run/student/README.md").read_text()
    assert report["recipe"]["teachers"][1]["layers"] == [1, 3]

    for others, difference in (
        (TWO.replace(": 3", ": 2"), "weight (3.0 against 2.0)"),
        ("teacher=teacher", "parameters ("),
    ):
        assert run.main([*small_run.ARGV, others, *options]) == 2
        assert (
            f"error: run was made with another set of teachers: teacher 1.{difference}"
            in small_run.capfd.readouterr().err
        )


def test_clusters_are_found_for_each_teacher(small_run: SmallRun) -> None:
    torch.manual_seed(1)
    save(SpeechEncoder(WIDE), "wide")
    asked = (
        "objective=clusters",
        "objective.count=2",
        "objective.calibration.debiased=true",
        "objective.calibration.stride=1",
    )
    small_run.completes("teachers=[teacher, wide]", "student.layers=2", *asked)
    layers = [
        json.loads(Path(f"run/{folder}clusters.json").read_text())["clusters"] for folder in ("", "layers-of-wide/")
    ]
    assert [sorted(layer for cluster in clusters for layer in cluster) for clusters in layers] == [
        [0, 1, 2],
        [0, 1, 2, 3],
    ]


def test_teachers_of_one_name_are_told_apart() -> None:
    recipe = load_recipe("star", ["teachers=[a/m, b/m, c/m-2]"])
    assert teacher_names(recipe) == ["m", "m-2", "m-2-2"]


def test_frame_rates_must_be_the_same(small_run: SmallRun) -> None:
    slower = (*WIDE.conv_layers[:-1], (16, 4, 4))
    save(SpeechEncoder(EncoderConfig(**{**WIDE.to_dict(), "conv_layers": slower})), "slow")
    said = small_run.refused("teachers=[teacher, slow]", "objective.scaling=centred", "student.layers=2")
    assert said == "error: slow has a frame every 640 samples, but the student every 320\n"
