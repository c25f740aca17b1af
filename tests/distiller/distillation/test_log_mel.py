"""The extractor's own steps: what it is taught, that nothing else changes, and that a stopped run continues."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distiller.audio.batch import Batch
from distiller.distillation import stages
from distiller.distillation.distillation_module import Distillation
from distiller.distillation.log_mel import LogMelRegression, spectrogram
from distiller.recipes.recipe import first_difference, load_recipe, to_dict
from distiller.recipes.yaml_files import dump
from tests.distiller.conftest import SmallRun
from tests.distiller.distillation.test_stages import TEACHER, rows
from upstream.checkpoint import load
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError
from upstream.log_mel import log_mel
from upstream.waveforms import frame_mask

RECIPE = load_recipe("star", ["teacher=teacher", "optimizer.extractor_lr_scale=10"])
STEPS = ("student.log_mel.steps=5",)


def padded_batch() -> Batch:
    lengths = torch.tensor([8000, 5040])  # 24 and 15 frames; 240 samples after the last frame of the second
    waveforms = 0.1 * torch.randn(2, 8000, generator=torch.Generator().manual_seed(0))
    waveforms[1, 5040:] = 0.0
    return Batch(waveforms, lengths, ["a", "b"], [], [])


def test_a_frame_is_taught_the_two_columns_around_its_middle() -> None:
    """Frame k is of the samples 320 k to 320 k + 400, column c of those around 160 c."""
    batch = padded_batch()
    mask = frame_mask(TEACHER.frame_count(batch.lengths), 24, torch.device("cpu"))
    wanted = spectrogram(batch.waveforms, mask, TEACHER)
    columns = log_mel(torch.nn.functional.pad(batch.waveforms, (0, 320)), 80).transpose(1, 2)
    for row, frames in enumerate((24, 15)):
        stacked = torch.stack([torch.cat([columns[row, 2 * k + 1], columns[row, 2 * k + 2]]) for k in range(frames)])
        torch.testing.assert_close(wanted[row, :frames], stacked - stacked.mean(), rtol=1e-4, atol=1e-5)
    assert wanted.shape == (2, 24, 160)


def test_the_loss_is_a_share_of_the_variance_over_valid_frames() -> None:
    torch.manual_seed(0)
    module = LogMelRegression(SpeechEncoder(TEACHER), RECIPE, lr=1e-2)
    torch.nn.init.zeros_(module.map.weight)
    torch.nn.init.zeros_(module.map.bias)
    batch = padded_batch()
    (term,) = module.losses(batch)
    mask = frame_mask(module.frame_lengths(batch), 24, torch.device("cpu"))
    wanted = spectrogram(batch.waveforms, mask, TEACHER)
    expected = sum(float(wanted[row, :frames].square().mean(dim=1).sum()) for row, frames in enumerate((24, 15))) / 0.2
    assert float(term.total.detach()) == pytest.approx(expected, rel=1e-5)
    louder = replace(batch, waveforms=3 * batch.waveforms)
    assert float(module.losses(louder)[0].total.detach()) == pytest.approx(expected, rel=1e-4)


def test_only_the_extractor_is_trained(small_run: SmallRun) -> None:
    report, out = small_run.completes(*STEPS, "optimizer.lr=1e-12", "optimizer.weight_decay=0", "trainer.epochs=1")
    assert "The extractor learns the log-mel spectrogram: 5 steps" in out
    table = [float(row["loss"]) for row in rows(Path("run/log-mel/metrics.csv"))]
    assert len(table) == 5
    torch.manual_seed(report["recipe"]["seed"])
    untrained = SpeechEncoder(load_recipe("run/recipe.yaml").student.shape(load("teacher").config)).state_dict()
    changed = {
        name for name, value in load("run/student").state_dict().items()
        if not torch.allclose(value, untrained[name], rtol=0, atol=1e-6)
    }  # fmt: skip
    assert changed == {name for name in untrained if name.startswith("feature_extractor.")}


def test_a_run_stopped_in_either_part_continues_as_if_it_had_not_been(
    small_run: SmallRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = small_run.completes(*STEPS, output="whole")
    train = stages.train

    class Stopped(Exception):
        pass

    def stopping(run, module, recipe, folder, keep_best=None):
        if isinstance(module, Distillation):
            raise Stopped
        return train(run, module, recipe, folder, keep_best)

    monkeypatch.setattr(stages, "train", stopping)
    with pytest.raises(Stopped):
        small_run.completes(*STEPS)
    monkeypatch.setattr(stages, "train", train)
    for checkpoint in sorted(Path("run/log-mel/checkpoints").iterdir())[-1:]:
        checkpoint.unlink()  # its last step is taken once more
    small_run.completes(*STEPS)
    first, second = (load(f"{name}/student").state_dict() for name in ("whole", "run"))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=0)
    assert whole["parameters"] == sum(value.numel() for value in first.values())


def test_where_it_cannot_be_is_refused() -> None:
    teachers = ["student.log_mel.steps=5", "student.size=teacher", "student.initialization=teacher"]
    with pytest.raises(UserError, match=r"student.log_mel.steps is 5, but it must be 0 with student.initialization"):
        load_recipe("star", teachers)
    with pytest.raises(UserError, match=r"student.log_mel.steps is 5, but it must be 0 with trainer.strategy fsdp"):
        load_recipe("star", ["student.log_mel.steps=5", "trainer.strategy=fsdp"])
    with pytest.raises(UserError, match=r"student\.log_mel is not a recipe key"):
        load_recipe("skill", ["student.log_mel.steps=5"])


def test_runs_of_versions_without_later_keys_continue(tmp_path: Path) -> None:
    values, saved = to_dict(load_recipe("star")), tmp_path / "recipe.yaml"
    for key in ("log_mel", "front_end", "attention", "look_ahead", "left_context"):
        del values["student"][key]
    del values["optimizer"]["extractor_lr_scale"], values["teachers"], values["corpus"]["augment"]
    saved.write_text(dump(values))
    assert first_difference(saved, load_recipe("star")) is None
    for change, said in (
        ("student.log_mel.steps=5", "student.log_mel.steps (0 against 5)"),
        ("optimizer.extractor_lr_scale=2.0", "optimizer.extractor_lr_scale (1.0 against 2.0)"),
        ("corpus.augment.noise.probability=0.5", "corpus.augment.noise.probability (0.0 against 0.5)"),
        ("student.front_end=thin", "student.front_end ('conv' against 'thin')"),
    ):
        assert first_difference(saved, load_recipe("star", [change])) == said


def test_the_extractor_has_its_own_learning_rate() -> None:
    student = SpeechEncoder(TEACHER)
    module = Distillation([SpeechEncoder(TEACHER)], student, torch.nn.Module(), RECIPE)  # type: ignore[arg-type]
    rates = {id(p): group["lr"] for group in module.optimizer().param_groups for p in group["params"]}
    assert len(rates) == len(list(module.parameters()))
    for name, parameter in student.named_parameters():
        scale = 10 if name.startswith("feature_extractor.") else 1
        assert rates[id(parameter)] == pytest.approx(scale * RECIPE.optimizer.lr)
