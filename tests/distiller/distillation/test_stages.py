"""Pruned students from recipe to report: all stages, interrupted anywhere, and what a user can get wrong."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from lightning.fabric import Fabric
from safetensors.torch import load_file, save_file

from distiller.common.files import remove
from distiller.corpora.corpus import open_corpus
from distiller.distillation import stages
from distiller.distillation.distil import distil
from distiller.distillation.distillation_module import JointDistillation
from distiller.objectives.config import ClustersConfig
from distiller.recipes.recipe import Recipe, final_stage, load_recipe
from distiller.training import loop
from upstream.checkpoint import load, save
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError

TEACHER = EncoderConfig(
    embed_dim=24, num_heads=4, head_dim=6, attention_heads=((0, 1, 2, 3),) * 3, ffn_dims=(32,) * 3,
    conv_layers=((8, 10, 5), *((8, 3, 2),) * 4, (8, 2, 2), (16, 2, 2)), positional_kernel=8, positional_groups=4,
)  # fmt: skip
TARGET = 0.4


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random teacher and 24 short noises."""
    folder = tmp_path_factory.mktemp("material")
    torch.manual_seed(0)
    save(SpeechEncoder(TEACHER), folder / "teacher")
    (folder / "noise").mkdir()
    random = np.random.default_rng(0)
    for index in range(24):
        soundfile.write(folder / "noise" / f"{index:02}.wav", random.standard_normal(4000 + 250 * index) / 10, 16_000)
    return folder


def recipe(material: Path, method: str, *overrides: str) -> Recipe:
    """30 steps and 15 after the cut, unless it says otherwise, on the material."""
    small = [
        f"teacher={material / 'teacher'}", f"corpus.path={material / 'noise'}", "corpus.batch_seconds=2",
        "corpus.workers=0", "corpus.validation_share=0.2", "trainer.steps=30", "trainer.checkpoint_every=4",
        "trainer.validate_every=10", "trainer.accelerator=cpu", "probe.enabled=false",
    ]  # fmt: skip
    pruned = [f"pruning.target={TARGET}", "pruning.lr=0.002"]  # which the fast-forward to 30 steps makes 0.33
    clusters = ["objective.calibration.stride=1", "objective.calibration.debiased=true"]
    by_method = {"skill": pruned + clusters, "dphubert": pruned}
    return load_recipe(method, [*small, *by_method.get(method, []), *overrides])


def rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load(folder).state_dict()


def parameters(encoder: SpeechEncoder) -> int:
    return sum(parameter.numel() for parameter in encoder.parameters())


PRUNED = {
    "dphubert": ("dphubert", []),
    "skill": ("skill", ["objective.count=2"]),
    "star": ("dphubert", ["objective=star", "objective.average_attention=0.1"]),
}


@pytest.mark.parametrize(
    "name", ["skill", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dphubert", "star"))]
)
def test_a_pruned_student_from_recipe_to_report(
    name: str, material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method, overrides = PRUNED[name]
    distil(recipe(material, method, *overrides), tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    student, left = load(tmp_path / "student"), load(tmp_path / "pruned")
    pruning, whole = report["pruning"], parameters(SpeechEncoder(TEACHER))
    assert student.config == left.config
    assert (report["parameters"], pruning["parameters_before"]) == (parameters(student), whole)
    assert 1 - parameters(student) / whole == pytest.approx(pruning["sparsity"], abs=1e-6)
    assert pruning["met"] == (abs(pruning["sparsity"] - TARGET) <= 0.01)
    assert ("more than 1% off" in capsys.readouterr().out) == (not pruning["met"])
    joint, final = rows(tmp_path / "joint" / "metrics.csv"), rows(tmp_path / "final" / "metrics.csv")
    assert (len(joint), len(final)) == (30, 15)
    assert float(joint[0]["sparsity"]) < 0.2 < float(joint[-1]["sparsity"])
    assert (float(joint[0]["target"]), float(joint[-1]["target"])) == (0.0, TARGET)
    assert "sparsity" not in final[0]
    assert max(float(row["lr"]) for row in final) == pytest.approx(max(float(row["lr"]) for row in joint) / 2)
    before, after = left.state_dict(), student.state_dict()
    assert sum(not torch.equal(before[key], after[key]) for key in before) > len(before) / 2  # distilled again
    figures = {"loss.png", "remaining_units.png", "distances.png"} | ({"similarity.png"} if name == "skill" else set())
    assert figures <= {path.name for path in (tmp_path / "student").iterdir()}
    distances = rows(tmp_path / "distances.csv")
    assert [row["teacher_layer"] for row in distances] == ["0", "1", "2", "3"]
    assert all(0 <= float(row[key]) <= 2 for row in distances for key in ("l2", "cosine", "cka"))
    if name == "skill":
        clusters = json.loads((tmp_path / "clusters.json").read_text())["clusters"]
        assert len(clusters) == 2
        projections = load_file(tmp_path / "pruned" / "objective.safetensors")
        assert sorted(projections) == [f"projections.{index}.{kind}" for index in (0, 1) for kind in ("bias", "weight")]
        assert not torch.equal(projections["projections.0.weight"], torch.eye(24))  # as trained, not as they began


def test_clusters_with_a_narrow_student_is_one_stage_straight_below_the_output(material: Path, tmp_path: Path) -> None:
    options = ["student.size=teacher", "objective=clusters", "objective.calibration.stride=1", "trainer.steps=4"]
    distil(recipe(material, "star", *options, "objective.calibration.debiased=true"), tmp_path)
    assert len(rows(tmp_path / "metrics.csv")) == 4
    assert {"checkpoints", "student", "best", "clusters.json"} <= {path.name for path in tmp_path.iterdir()}
    assert not (tmp_path / "joint").exists()
    assert "pruning" not in json.loads((tmp_path / "report.json").read_text())


def test_clusters_by_hand_may_be_fewer_than_the_recipes_count(material: Path, tmp_path: Path) -> None:
    asked = recipe(material, "skill", "objective.layers=[1,2]", "objective.clusters=[[1],[2]]")
    (target,) = stages.with_clusters(stages.Run(asked, tmp_path, [SpeechEncoder(TEACHER)]))
    assert isinstance(target.section, ClustersConfig)
    assert target.section.clusters == [[1], [2]]


@pytest.mark.slow
def test_clusters_and_both_stages_open_the_corpus_once(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(
        stages, "open_corpus", lambda config, *rest: opened.append(config.path) or open_corpus(config, *rest)
    )
    distil(recipe(material, "skill", "objective.count=2", "trainer.steps=2"), tmp_path)
    assert opened == [str(material / "noise")]


@pytest.mark.slow
def test_a_pruned_student_of_an_earlier_version_is_continued(material: Path, tmp_path: Path) -> None:
    """Its projections were called heads."""
    asked = recipe(material, "dphubert", "trainer.steps=2")
    distil(asked, tmp_path)
    before = weights(tmp_path / "student")
    for leftover in ("report.json", "student", "final"):
        remove(tmp_path / leftover)
    path = tmp_path / "pruned" / "objective.safetensors"
    save_file({name.replace("projections", "heads"): state for name, state in load_file(path).items()}, path)
    distil(asked, tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in weights(tmp_path / "student").items())


class Interrupted(Exception):
    pass


def interrupt(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Let the next run fall over in a stage's sixth step, or when the cut student is about to be written."""
    step, write = loop.optimiser_step, stages.save

    def stepping(fabric: Fabric, network: Any, *arguments: Any) -> dict[str, float]:
        stage = "joint" if isinstance(network.module, JointDistillation) else "final"
        if stage == where and network.module.progress.step == 5:
            raise Interrupted
        return step(fabric, network, *arguments)

    def writing(encoder: SpeechEncoder, directory: Path, *arguments: object) -> None:
        if where == directory.name:
            raise Interrupted
        write(encoder, directory, *arguments)

    monkeypatch.setattr(loop, "optimiser_step", stepping)
    monkeypatch.setattr(stages, "save", writing)


@pytest.mark.slow
def test_interrupted_in_either_stage_and_between_it_is_the_uninterrupted_run(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe(material, "skill", "trainer.steps=12", "student.dropout=0.1", "trainer.ema=0.5")
    distil(asked, tmp_path / "whole")
    for where in ("joint", "pruned", "final"):
        with monkeypatch.context() as patch:
            interrupt(patch, where)
            with pytest.raises(Interrupted):
                distil(asked, tmp_path / "parts")
        assert (tmp_path / "parts" / "pruned").exists() == (where == "final")
    distil(asked, tmp_path / "parts")
    for folder in ("pruned", "final/best", "student"):
        whole, parts = (load(tmp_path / run / folder) for run in ("whole", "parts"))
        assert whole.config == parts.config
        for key, value in whole.state_dict().items():
            assert torch.equal(value, parts.state_dict()[key]), (folder, key)
    for table in ("joint/metrics.csv", "joint/held_out.csv", "final/metrics.csv", "final/held_out.csv"):
        whole, parts = (rows(tmp_path / run / table) for run in ("whole", "parts"))
        for row in whole + parts:
            row.pop("step_seconds", None)
        assert whole == parts
    reports = [json.loads((tmp_path / run / "report.json").read_text()) for run in ("whole", "parts")]
    assert reports[0]["pruning"] == reports[1]["pruning"]
    assert reports[0]["losses"] == reports[1]["losses"]


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("objective.safetensors", "pruning.json")),
    ],
)
@pytest.mark.parametrize("missing", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_damaged_cut_is_made_again(name: str, missing: bool, material: Path, tmp_path: Path) -> None:
    asked = recipe(material, "dphubert", "trainer.steps=2")
    distil(asked, tmp_path)
    before = weights(tmp_path / "student")
    for leftover in ("report.json", "student", "final"):
        remove(tmp_path / leftover)
    (tmp_path / "pruned" / name).write_bytes(b"\0" * 100)
    if missing:
        (tmp_path / "pruned" / name).unlink()
    with pytest.raises(UserError, match=r"pruned is damaged \(.*\); remove it"):
        distil(asked, tmp_path)
    remove(tmp_path / "pruned")
    distil(asked, tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in weights(tmp_path / "student").items())


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["pruning.target=0.99"],
            r"^pruning\.target is 0\.99, but it must be at most 0\.\d+, reached when every gate",
        ),
        (["objective.count=5"], r"^objective\.count is 5, but it must be auto or at most 4, the teacher's layers$"),
        (
            ["objective.calibration.corpus=gone"],
            r"^\S+/gone does not exist$",
        ),
        (
            ["objective.calibration.corpus=one", "objective.calibration.debiased=false"],
            r"gives \d+ frames, no more than",
        ),
        (
            ["objective.layers=[0,4]", "objective.count=2"],
            r"^objective\.layers is \[0, 4\], but it must be layers of the teacher, from 0 to 3$",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(
    overrides: list[str], sentence: str, material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("one").mkdir()
    shutil.copy(material / "noise" / "00.wav", "one")
    with pytest.raises(UserError, match=sentence) as caught:
        distil(recipe(material, "skill", *overrides), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "joint").exists()


def test_a_corpus_that_vanishes_between_the_stages(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = shutil.copytree(material / "noise", tmp_path / "noise")
    asked = recipe(material, "dphubert", f"corpus.path={corpus}", "trainer.steps=2")

    def vanish(encoder: SpeechEncoder, directory: Path, *arguments: object) -> None:
        save(encoder, directory, *arguments)
        shutil.rmtree(corpus)

    with monkeypatch.context() as patch:  # while it runs
        patch.setattr(stages, "save", vanish)
        with pytest.raises(UserError, match=r"^21 of 21 utterances .* could not be used.*skipped\.csv says why$"):
            distil(asked, tmp_path / "run")
    assert "No such file" in (tmp_path / "run" / "skipped.csv").read_text()
    with pytest.raises(UserError, match=f"{corpus}.*does not exist"):  # and when it is continued
        distil(asked, tmp_path / "run")
    shutil.copytree(material / "noise", corpus)
    distil(asked, tmp_path / "run")
    assert (tmp_path / "run" / "report.json").exists()


def test_star_is_relative_where_the_student_is_pruned() -> None:
    assert load_recipe("skill", ["objective=star"]).objective.relative
    assert load_recipe("star", ["student=pruned"]).objective.relative
    assert not load_recipe("skill", ["objective=star", "objective.relative=false"]).objective.relative
    assert not load_recipe("star").objective.relative


@pytest.mark.parametrize("teacher", ["hubert", "wavlm", "wavlm-plus", "wav2vec2"])
def test_the_papers_two_stages(teacher: str) -> None:
    large, small = (load_recipe(f"skill-{teacher}-{hours}", ["corpus.path=x"]) for hours in ("960h", "100h"))
    assert (large.corpus.subsets[1:], small.corpus.subsets) == (
        ["train-clean-360", "train-other-500"],
        ["train-clean-100"],
    )
    for one in (large, small):
        for stage, expected in ((one, (50_000, 2e-4, 15_000)), (final_stage(one), (25_000, 1e-4, 5_000))):
            steps, optimizer = stage.trainer.steps, stage.optimizer
            assert (steps, optimizer.lr, optimizer.warmup * steps) == pytest.approx(expected)
        assert (one.pruning.target, one.pruning.lr, one.pruning.warmup * one.trainer.steps) == (0.75, 0.02, 5_000)
        assert (one.optimizer.clip, one.optimizer.weight_decay, one.optimizer.schedule) == (10, 0, "linear")
        assert one.corpus.batch_seconds * one.trainer.accumulate == 4 * 160
        assert (one.corpus.min_seconds, one.corpus.max_seconds) == (2, 15.6)
        assert (one.method, one.objective.name, one.student.name) == ("skill", "clusters", "pruned")


def test_all_of_another_corpus_is_calibrated_on(material: Path, tmp_path: Path) -> None:
    """Whatever the bounds on the durations of training are; files longer than a batch are divided."""
    noise = material / "noise"  # 24 files of 0.25 to 0.61 s
    bounds = ["corpus.min_seconds=0.2", "corpus.batch_seconds=0.3", f"objective.calibration.corpus={noise}"]
    run = stages.Run(recipe(material, "skill", *bounds), tmp_path, [load(material / "teacher")])
    audio = run.calibration_audio(str(noise))
    assert audio.corpus == str(noise)
    assert sum(cut.duration for cut in audio.cuts) == pytest.approx(10.3, abs=0.05)
    assert max(cut.duration for cut in audio.cuts) <= audio.batch_seconds == 0.3


def test_a_student_that_hears_in_chunks_is_distilled(material: Path, tmp_path: Path) -> None:
    chunked = ("student.attention=chunked", "student.look_ahead=3", "student.left_context=8")
    distil(recipe(material, "star", "student.size=teacher", "trainer.steps=4", *chunked), tmp_path)
    student, waveform = load(tmp_path / "student"), 0.1 * torch.randn(1, 9_000)
    assert (student.config.chunk_frames, student.config.left_frames, student.config.conv_norm) == (4, 8, "group")
    with torch.no_grad(), student.streaming() as stream:
        parts = [*(student(piece) for piece in waveform.split(1_234, dim=1)), stream.flush()]
        streamed = torch.cat([part.last_hidden_state for part in parts], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(streamed, student(waveform).last_hidden_state, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("front_end", ["thin", "logmel"])
def test_other_front_ends_are_distilled_and_saved(material: Path, tmp_path: Path, front_end: str) -> None:
    distil(
        recipe(material, "star", "student.size=teacher", f"student.front_end={front_end}", "trainer.steps=4"), tmp_path
    )
    student, teacher = load(tmp_path / "student").config, load(material / "teacher").config
    assert student.embed_dim == teacher.embed_dim
    assert [student.frame_count(n) for n in (400, 8000, 8319)] == [teacher.frame_count(n) for n in (400, 8000, 8319)]
    assert (student.mel_bins > 0) == (front_end == "logmel")
    assert student.conv_layers[0][0] == (teacher.embed_dim if front_end == "logmel" else teacher.conv_layers[0][0] // 2)
