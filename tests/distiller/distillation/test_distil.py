"""Distillation against an independent account of it, and the run from a recipe to its report."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from torch.optim.lr_scheduler import LambdaLR
from transformers import HubertConfig, HubertModel, PreTrainedModel, WavLMConfig, WavLMModel

from distiller import run
from distiller.audio.batch import Batch, StepBatch
from distiller.distillation import distil as module_under_test
from distiller.distillation import stages
from distiller.distillation.distil import FILLED, WITHOUT_LIMIT, filling_seconds, settle_batches
from distiller.distillation.distillation_module import Distillation
from distiller.objectives.registry import build
from distiller.recipes.recipe import load_recipe
from distiller.training import loop
from distiller.training.step import optimiser_step
from upstream.checkpoint import load

LENGTHS = [16_000, 11_231, 7_040]
CONV = {"conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}


def tiny(kind: str, width: int, seed: int, path: Path) -> PreTrainedModel:
    """A random model of three layers, saved at `path` as transformers saves it."""
    torch.manual_seed(seed)
    shape = {"hidden_size": width, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 2 * width}
    quiet = dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"), 0.0)
    config, model = {"hubert": (HubertConfig, HubertModel), "wavlm": (WavLMConfig, WavLMModel)}[kind]
    network = model(config(**shape, **CONV, **quiet, layerdrop=0.0)).eval()
    network.save_pretrained(path)
    return network


@pytest.mark.parametrize("kind", ["hubert", "wavlm"])
def test_the_first_loss_is_what_numpy_makes_of_transformers_states(kind: str, tmp_path: Path) -> None:
    models = [tiny(kind, width, seed, tmp_path / str(width)) for seed, width in enumerate((48, 32))]
    teacher, student = load(tmp_path / "48"), load(tmp_path / "32").train()
    recipe = load_recipe("star", ["objective.scaling=none"])
    module = Distillation([teacher], student, build(recipe.objective, teacher.config, student.config), recipe)
    module.steps = 1
    random = torch.Generator().manual_seed(0)
    waveforms = [torch.randn(length, generator=random) for length in LENGTHS]
    padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    batch = Batch(padded, torch.tensor(LENGTHS), ["a", "b", "c"], ["a", "b", "c"], [])
    fabric, adamw = Fabric(accelerator="cpu", devices=1), module.optimizer()
    network, optimizer = fabric.setup_module(module), fabric.setup_optimizers(adamw)
    taken = optimiser_step(fabric, network, optimizer, LambdaLR(adamw, lambda step: 1.0), StepBatch([batch], 0, 0))
    row = taken.row(fabric, module)

    layer_wise = intra_layer = 0.0
    for waveform in waveforms:
        with torch.no_grad():
            states = [model(waveform[None], output_hidden_states=True).hidden_states for model in models]
        teacher_states, student_states = ([state[0].double().numpy() for state in side] for side in states)
        for layer in range(1, 4):
            grams = [side[layer] @ side[layer].T for side in (teacher_states, student_states)]
            layer_wise += np.mean((grams[0] - grams[1]) ** 2) / len(waveforms)
            grams = [side[layer - 1] @ side[layer].T for side in (teacher_states, student_states)]
            intra_layer += np.mean((grams[0] - grams[1]) ** 2) / len(waveforms)
    assert row["term/layer_wise"] == pytest.approx(layer_wise, rel=1e-4)
    assert row["term/intra_layer"] == pytest.approx(intra_layer, rel=1e-4)
    assert row["loss"] == pytest.approx(layer_wise + intra_layer, rel=1e-4)


# --- corpus.batch_seconds: auto

GB = 10**9
AUTO = ("corpus.batch_seconds=auto", "corpus.step_seconds=1.4")


class Memory:
    """Stands for a GPU: a step takes 1 GB, and 1 GB for each second of audio."""

    def __init__(self, free: float) -> None:
        self.free, self.shapes = free, []

    def of_batch(self, shape: tuple[int, int]) -> None:
        self.shapes.append(shape)

    def peak(self, device: torch.device) -> float:
        utterances, samples = self.shapes[-1]
        return GB + GB * utterances * samples / 16_000


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """Gives the CPU so many free bytes."""

    def give(free: float) -> Memory:
        memory = Memory(free)
        losses = stages.Distillation.losses

        def seen(self: Any, batch: Any) -> Any:
            memory.of_batch(tuple(batch.waveforms.shape))
            return losses(self, batch)

        monkeypatch.setattr(module_under_test, "OWN_MEMORY", {"cpu"})
        monkeypatch.setattr(stages.Distillation, "losses", seen)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (memory.free, 2 * memory.free))
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", memory.peak)
        return memory

    return give


def written() -> tuple[float, int]:
    recipe = load_recipe(Path("run/recipe.yaml"))
    return recipe.corpus.seconds, recipe.trainer.accumulate


def test_a_run_fills_the_memory_and_continues(small_run, gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = gpu((1 + 0.75) * GB / FILLED)  # 0.75 s of audio: two utterances of at most 0.33 s
    save, calls = loop.save_checkpoint, []

    def stop(*arguments: Any) -> None:
        save(*arguments)
        calls.append(arguments)
        raise RuntimeError("interrupted")

    with monkeypatch.context() as broken:
        broken.setattr(loop, "save_checkpoint", stop)
        with pytest.raises(RuntimeError, match="interrupted"):
            small_run.refused(*AUTO)
    seconds, count = written()
    assert seconds * count == pytest.approx(1.4)
    assert (0.4 < seconds <= 2 * 0.33, count) == (True, 3)
    tried = memory.shapes[:4]
    assert len(set(tried)) == 2  # two sizes, two steps of each
    assert {samples for _, samples in tried} == {5250}  # the longest
    memory.free = 40 * GB
    small_run.completes(*AUTO)
    assert written() == (seconds, count)
    small_run.completes(*AUTO)  # shows the results
    small_run.completes(f"corpus.batch_seconds={seconds!r}", f"trainer.accumulate={count}")
    Path("run/report.json").rename("report.json")
    said = small_run.refused("corpus.batch_seconds=auto", "corpus.step_seconds=2.8")
    assert f"another recipe: corpus.batch_seconds ({seconds!r} against 'auto')" in said


def test_processes_that_start_together_agree(small_run, gpu, tmp_path: Path) -> None:
    """One of them measures, whichever is first; the others take its number."""
    memory = gpu((1 + 0.75) * GB / FILLED)
    keys = [word for word in small_run.ARGV if "=" in word and not word.startswith("--")]
    recipe = load_recipe("star", [*keys, *AUTO, "teacher=teacher", "corpus.path=corpus", "trainer.devices=2"])
    started = stages.Run(recipe, tmp_path / "run", [load("teacher")])
    first = settle_batches(started).recipe
    measured, memory.free = len(memory.shapes), 40 * GB
    assert settle_batches(started).recipe == first
    assert len(memory.shapes) == measured
    assert (first.corpus.seconds, first.trainer.accumulate) == (pytest.approx(0.35), 2)  # of 1.4 s on two devices


def test_without_memory_of_its_own(small_run) -> None:
    _, said = small_run.completes(*AUTO)
    assert "corpus.batch_seconds is auto: 1 batches of at most 1.4 s a step on each device" in said
    assert written() == (1.4, 1)
    assert WITHOUT_LIMIT > 1.4
    assert not Path("run/batch.json").exists()


def test_a_plan_says_what_auto_means(small_run) -> None:
    assert run.main([*small_run.ARGV, *AUTO, "--dry-run", "trainer.devices=2"]) == 0
    out, _ = small_run.capfd.readouterr()
    assert "batch_seconds: auto\n" in out
    assert "0.7 s a step on each device, in equal parts that fit its memory" in out
    assert "# steps         about 3 of at most 1.4 s (0.7 s x 1 batches x 2 devices)" in out
    assert "without looking" not in out


@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        ("star", ["student.size=teacher", "trainer.precision=bf16-mixed"]),
        ("skill", []),
        ("distilhubert", ["objective.layers=[1,2]"]),
    ],
)
def test_the_module_of_each_method_is_measured(method: str, overrides: list[str], tiny_teacher: Path, gpu) -> None:
    gpu(11 * GB / FILLED)
    common = [f"teacher={tiny_teacher}", "corpus.path=corpus", "trainer.accelerator=cpu", "corpus.batch_seconds=60"]
    recipe = load_recipe(method, [*common, *overrides])
    teacher = load(tiny_teacher)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    started = stages.Run(recipe, Path("run"), [teacher])
    assert settle_batches(started) is started  # a number
    assert filling_seconds(started, 0.5) == 10.0
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not any(parameter.grad is not None for parameter in teacher.parameters())
