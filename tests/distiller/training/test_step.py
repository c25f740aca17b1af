"""A step whose numbers are read while the next one runs, as on a GPU, and the optimizer behind it."""

import copy
import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from distiller.audio.batch import Batch, StepBatch
from distiller.distillation.distillation_module import Distillation
from distiller.objectives.base import Term
from distiller.objectives.registry import build
from distiller.recipes.recipe import load_recipe
from distiller.training import loop, step
from distiller.training.module import schedule
from distiller.training.processes import FullPrecisionInputs
from distiller.training.step import TakenStep, optimiser_step
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError

CONFIG = EncoderConfig(
    embed_dim=24, num_heads=2, head_dim=12, attention_heads=((0, 1),) * 2, ffn_dims=(32,) * 2,
    conv_layers=((8, 10, 5), *((8, 3, 2),) * 4, (8, 2, 2), (16, 2, 2)), positional_kernel=8, positional_groups=4,
)  # fmt: skip


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU is treated as a GPU is."""
    monkeypatch.setattr(step, "LATE", {"cpu"})
    monkeypatch.setattr(loop, "LATE", {"cpu"})


class Placed:
    """A tiny distillation on Fabric."""

    def __init__(self, *overrides: str, **fabric: Any) -> None:
        torch.manual_seed(0)
        recipe = load_recipe("star", ["corpus.path=none", *overrides])
        objective = build(recipe.objective, CONFIG, CONFIG)
        self.module = Distillation([SpeechEncoder(CONFIG)], SpeechEncoder(CONFIG), objective, recipe)
        self.module.steps = 10
        self.fabric = Fabric(accelerator="cpu", **fabric)
        self.network = self.fabric.setup_module(self.module)
        self.adamw = self.module.optimizer()
        self.optimizer: Any = self.fabric.setup_optimizers(self.adamw)
        self.scheduler = LambdaLR(self.adamw, schedule(self.module.optimizer_config, 10))
        self.batch = Batch(0.1 * torch.randn(2, 6000), torch.tensor([6000, 4000]), ["a", "b"], ["a.wav", "b.wav"], [])

    def take(self) -> TakenStep:
        return optimiser_step(
            self.fabric,
            self.network,
            self.optimizer,
            self.scheduler,
            StepBatch([self.batch], 0, self.module.progress.step),
        )

    def weights(self) -> list[Tensor]:
        return [weight.detach().clone() for weight in self.module.student.parameters()]

    def break_losses(self, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
        def losses(batch: Batch) -> list[Term]:
            weight = next(iter(self.module.student.parameters()))
            return [Term("broken", ((weight - weight.detach()) * value).sum(), "utterance")]  # 0 if value is finite

        monkeypatch.setattr(self.module, "losses", losses)


def rows_of(folder: str) -> list[dict[str, str]]:
    with Path(folder, "metrics.csv").open() as file:
        return [{name: value for name, value in row.items() if name != "step_seconds"} for row in csv.DictReader(file)]


def test_a_run_that_reads_its_numbers_later_is_the_same_run(
    small_run, late: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows, weights and checkpoints; everything has been read before a checkpoint."""
    saved: list[int] = []
    save = loop.save_checkpoint

    def read_before(fabric: Fabric, folder: Path, number: int, state: dict[str, Any]) -> None:
        assert len(rows_of("late")) == number
        saved.append(number)
        save(fabric, folder, number, state)

    monkeypatch.setattr(loop, "save_checkpoint", read_before)
    argv = ("trainer.epochs=2", "trainer.checkpoint_every=4", "trainer.validate_every=3", "trainer.ema=0.5")
    small_run.completes(*argv, output="late")
    assert saved == [4, 6]
    monkeypatch.setattr(loop, "save_checkpoint", save)
    monkeypatch.setattr(step, "LATE", set())
    monkeypatch.setattr(loop, "LATE", set())
    small_run.completes(*argv, output="once")
    assert rows_of("late") == rows_of("once")
    assert list(rows_of("once")[0])[:4] == ["step", "lr", "gradient_norm", "loss"]
    assert Path("late/held_out.csv").read_text() == Path("once/held_out.csv").read_text()
    weights = [Path(run, "student", "model.safetensors").read_bytes() for run in ("late", "once")]
    assert weights[0] == weights[1]


def test_a_loss_that_is_found_not_to_be_finite_a_step_later(
    small_run, late: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line names the step and files that it is of, the table ends before it, and no checkpoint follows it."""
    losses, seen = Distillation.losses, []

    def broken(self: Distillation, batch: Batch) -> list[Term]:
        seen.append(batch.paths)
        terms = losses(self, batch)
        return [Term(t.name, t.total * (math.nan if len(seen) == 5 else 1.0), t.unit, t.weight) for t in terms]

    monkeypatch.setattr(Distillation, "losses", broken)
    line = small_run.refused("trainer.epochs=2", "trainer.checkpoint_every=3")
    assert len(seen) == 6  # the next step had begun
    assert "the loss is nan at step 5 (files" in line
    assert seen[4][0] in line
    assert [row["step"] for row in rows_of("run")] == ["1", "2", "3", "4"]
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["step-00000003.ckpt"]


@pytest.mark.parametrize(("value", "what"), [(math.nan, "loss"), (math.inf, "loss"), (3e38, "gradient norm")])
def test_an_update_that_is_not_finite_is_left_out(
    late: None, monkeypatch: pytest.MonkeyPatch, value: float, what: str
) -> None:
    """Weights, moments and the optimizer's count of steps stay as they are before anybody knows."""
    placed = Placed()
    placed.take().row(placed.fabric, placed.module)
    weights = placed.weights()
    moments = [{name: tensor.clone() for name, tensor in state.items()} for state in placed.adamw.state.values()]
    placed.break_losses(monkeypatch, value)
    taken = placed.take()
    assert all(map(torch.equal, placed.weights(), weights))
    for state, before in zip(placed.adamw.state.values(), moments, strict=True):
        assert all(torch.equal(tensor, before[name]) for name, tensor in state.items())
    with pytest.raises(UserError, match=rf"the {what} is (nan|inf) at step 2 \(files a.wav, b.wav\)"):
        taken.row(placed.fabric, placed.module)


def test_a_gradient_scaler_divides_its_scale_out_once_and_skips_what_is_infinite(
    late: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    plain, scaled = Placed(), Placed(plugins=FullPrecisionInputs("16-mixed", "cpu", scaler))
    expected, row = (placed.take().row(placed.fabric, placed.module) for placed in (plain, scaled))
    assert row["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=0.02)
    moments = [
        torch.cat([state["exp_avg"].flatten() for state in placed.adamw.state.values()]) for placed in (plain, scaled)
    ]
    torch.testing.assert_close(moments[1].norm(), moments[0].norm(), rtol=0.02, atol=0)
    weights = scaled.weights()
    scaled.break_losses(monkeypatch, 1e38)
    assert math.isinf(scaled.take().row(scaled.fabric, scaled.module)["gradient_norm"])
    assert all(map(torch.equal, scaled.weights(), weights))


def test_a_checkpoint_of_the_unfused_optimizer_is_continued() -> None:
    """As the unfused one would have, up to rounding, and by the fused one, on which a GPU relies."""
    older, newer = Placed(), Placed()
    older.adamw.param_groups[0]["fused"] = older.adamw.param_groups[1]["fused"] = False
    older.take()
    state = copy.deepcopy(older.adamw.state_dict())
    assert {group["fused"] for group in state["param_groups"]} == {False}
    newer.module.load_state_dict(older.module.state_dict())
    newer.optimizer.load_state_dict(state)
    newer.module.progress.step = 1
    assert {group["fused"] for group in newer.adamw.param_groups} == {True}
    older.take()
    newer.take()
    for ours, theirs in zip(newer.weights(), older.weights(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_a_group_is_left_as_it_is_until_its_first_step() -> None:
    """Neither its gradients, nor weight decay, nor the optimizer's state: then it begins like a new one."""
    placed = Placed("optimizer.weight_decay=0.1")
    module = placed.module
    held = module.student.layers[0].feed_forward.output.weight  # type: ignore[union-attr]
    module.special_groups = lambda: [{"params": [held], "weight_decay": 0.1, "first_step": 2}]  # type: ignore[method-assign]
    placed.adamw = module.optimizer()
    placed.optimizer = placed.fabric.setup_optimizers(placed.adamw)
    placed.scheduler = LambdaLR(placed.adamw, schedule(module.optimizer_config, 10))
    before, other = held.detach().clone(), module.student.layer_norm.weight.detach().clone()  # type: ignore[union-attr]
    for _ in range(2):
        placed.take()
        assert torch.equal(held, before)
        assert held not in placed.adamw.state
    assert not torch.equal(module.student.layer_norm.weight, other)  # type: ignore[union-attr,arg-type]
    placed.take()
    assert not torch.equal(held, before)
    assert int(placed.adamw.state[held]["step"]) == 1
