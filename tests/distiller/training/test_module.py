"""The loop: normalisation over the global batch, exact resume, a teacher that stays as it is."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from distiller.audio.batch import Batch, StepBatch
from distiller.audio.dataset import AudioDataset, validation_batches
from distiller.audio.decoding import Decoder
from distiller.audio.sampler import StepBatchSampler
from distiller.audio.skipped import SkippedLog
from distiller.corpora.config import CorpusConfig
from distiller.corpora.corpus import open_corpus
from distiller.distillation.distillation_module import Distillation
from distiller.objectives.registry import build
from distiller.recipes.recipe import Recipe, load_recipe
from distiller.students.config import NarrowConfig
from distiller.training import loop
from distiller.training.config import OptimizerConfig
from distiller.training.loop import Training, optimiser_step
from distiller.training.module import schedule, step_seed
from upstream.checkpoint import load, save
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError

CONV = ((8, 10, 5), (8, 3, 2), (8, 3, 2), (8, 3, 2), (8, 3, 2), (8, 2, 2), (16, 2, 2))
TEACHER = EncoderConfig(
    embed_dim=24, num_heads=2, head_dim=12, attention_heads=((0, 1),) * 3, ffn_dims=(32,) * 3, conv_layers=CONV,
    positional_kernel=8, positional_groups=4,
)  # fmt: skip
STUDENT = EncoderConfig(
    embed_dim=16, num_heads=2, head_dim=8, attention_heads=((0, 1),) * 3, ffn_dims=(24,) * 3, conv_layers=CONV,
    projection=False, positional_kernel=8, positional_groups=4,
)  # fmt: skip


def smoke_recipe(*overrides: str) -> Recipe:
    return load_recipe("star", ["trainer.steps=6", "trainer.checkpoint_every=2", "trainer.accelerator=cpu", *overrides])


def distillation(recipe: Recipe, student: EncoderConfig = STUDENT) -> Distillation:
    torch.manual_seed(0)
    teacher, network = SpeechEncoder(TEACHER), SpeechEncoder(student)
    return Distillation([teacher], network, build(recipe.objective, TEACHER, student), recipe)


def batch(lengths: list[int], seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    waveforms = torch.zeros(len(lengths), max(lengths))
    for row, length in enumerate(lengths):
        waveforms[row, :length] = torch.randn(length, generator=random)
    return Batch(waveforms, torch.tensor(lengths), [str(n) for n in lengths], [f"{n}.wav" for n in lengths], [])


def split(whole: Batch, at: int) -> list[Batch]:
    """The batch in two, each padded to its own longest."""
    parts = []
    for rows in (slice(None, at), slice(at, None)):
        lengths = whole.lengths[rows]
        waveforms = whole.waveforms[rows, : int(lengths.max())]
        parts.append(Batch(waveforms, lengths, whole.ids[rows], whole.paths[rows], []))
    return parts


def one_step(module: Distillation, micro_batches: list[Batch], **fabric: Any) -> dict[str, Tensor]:
    """The gradients of one optimiser step."""
    module.steps = 1
    placed = Fabric(**({"accelerator": "cpu"} | fabric))
    placed.launch()
    network, adamw = placed.setup_module(module), module.optimizer()
    scheduler = LambdaLR(adamw, schedule(module.optimizer_config, 1))
    optimiser_step(placed, network, placed.setup_optimizers(adamw), scheduler, StepBatch(micro_batches, 0, 0))
    return {name: parameter.grad for name, parameter in module.student.named_parameters() if parameter.grad is not None}


def assert_same_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """To 1e-6 of the largest; some gradients, such as that of the keys' bias, are 0 but for rounding."""
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 0
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=1e-6 * largest, msg=name)


OBJECTIVE = ("objective.scaling=none", "objective.average_attention=1", "optimizer.clip=0")
LENGTHS = [9000, 6000, 2500, 4000, 800]


def test_accumulated_batches_of_unequal_sizes_give_one_batchs_gradients() -> None:
    whole = batch(LENGTHS)
    expected = one_step(distillation(smoke_recipe(*OBJECTIVE)), [whole])
    accumulated = one_step(distillation(smoke_recipe(*OBJECTIVE)), split(whole, 2))
    assert_same_gradients(accumulated, expected)


def test_padding_to_a_buckets_longest_changes_neither_loss_nor_gradients() -> None:
    whole, losses, gradients = batch(LENGTHS), [], []
    for extra in (0, 1, 2600):
        module = distillation(smoke_recipe(*OBJECTIVE))
        padded = replace(whole, waveforms=torch.nn.functional.pad(whole.waveforms, (0, extra)))
        gradients.append(one_step(module, [padded]))
        losses.append(sum(float(term.total.detach()) for term in module.losses(padded)))
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
    assert_same_gradients(gradients[1], gradients[0])
    assert_same_gradients(gradients[2], gradients[0])


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


@pytest.mark.slow
def test_two_ranks_of_unequal_batches_give_one_batchs_gradients(tmp_path: Path) -> None:
    expected = one_step(distillation(smoke_recipe(*OBJECTIVE)), [batch(LENGTHS)])
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    environment |= {
        "PYTHONPATH": str(Path(__file__).parents[3]),
        "TORCHELASTIC_RUN_ID": "test",
        "GROUP_RANK": "0",
        "LOCAL_WORLD_SIZE": "2",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path)], env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in (0, 1)
    ]
    assert [rank.wait(timeout=200) for rank in ranks] == [0, 0]
    for rank in (0, 1):
        assert_same_gradients(torch.load(tmp_path / f"{rank}.pt", weights_only=True), expected)


def test_the_teacher_stays_in_eval_mode_without_gradients_and_out_of_the_checkpoint() -> None:
    module = distillation(smoke_recipe("trainer.ema=0.9"))
    before = {name: value.clone() for name, value in module.teachers[0].state_dict().items()}
    one_step(module, [batch(LENGTHS)])
    module.train()
    assert not any(part.training for part in module.teachers[0].modules())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in module.teachers[0].parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.teachers[0].state_dict().items())
    student = sum(parameter.numel() for parameter in module.student.parameters())
    assert (
        sum(value.numel() for value in module.state_dict().values()) == 2 * student + 1
    )  # with its average, and a count


def test_a_loss_that_is_not_a_number_names_the_step_and_the_files() -> None:
    module = distillation(smoke_recipe())
    with torch.no_grad():
        module.student.layers[1].feed_forward.output.bias[3] = float("nan")
    with pytest.raises(
        UserError, match=r"the loss is nan at step 1 \(files 9000\.wav, 6000\.wav, 2500\.wav and 2 more\)"
    ):
        one_step(module, [batch(LENGTHS)])


@pytest.mark.parametrize(("weight", "first", "diverges"), [(1e4, None, False), (1e4, 5.0, True), (1.0, 5e-7, False)])
def test_a_loss_far_beyond_the_first_has_diverged(weight: float, first: float | None, diverges: bool) -> None:
    """Unless the first was next to nothing, as one with a cosine in it may be."""
    module = distillation(smoke_recipe())
    module.progress.first_loss, losses = first, module.losses
    weighted = lambda batch: [replace(term, weight=weight * term.weight) for term in losses(batch)]  # noqa: E731
    module.losses = weighted  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"try a lower optimizer\.lr") if diverges else nullcontext():
        one_step(module, [batch(LENGTHS)])


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """A folder of 24 short wav files."""
    folder = tmp_path / "noise"
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(24):
        soundfile.write(folder / f"{index:02}.wav", 0.1 * random.standard_normal(3000 + 250 * index), 16_000)
    return folder


class Interrupted(Exception):
    pass


@pytest.fixture
def run_fit(noise: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Distillation]:
    """Six steps with dropout, held-out loss and checkpoints; after `interrupt_after` of them, training fails."""

    def run(output: Path, recipe: Recipe, interrupt_after: int = 0) -> Distillation:
        section = CorpusConfig(path=str(noise), batch_seconds=1.0, buckets=3, validation_share=0.2, workers=0)
        decoder = Decoder(TEACHER.min_samples)
        corpus = open_corpus(section, decoder)
        module = distillation(recipe, NarrowConfig(size="teacher", dropout=0.2).shape(TEACHER))

        def sampler(rank: int, world_size: int) -> StepBatchSampler:
            return StepBatchSampler(corpus.train, 1.0, 3, recipe.seed, rank, world_size, accumulate=2)

        def step(*arguments: Any) -> dict[str, float]:
            if interrupt_after and module.progress.step == interrupt_after:
                raise Interrupted
            return optimiser_step(*arguments)

        monkeypatch.setattr(loop, "optimiser_step", step)
        training = Training(
            module,
            AudioDataset(corpus.train, decoder, recipe.seed),
            sampler,
            recipe.trainer,
            output,
            held_out=validation_batches(corpus.validation, 1.0, decoder),
            keep_best=lambda trained: save(trained.kept_student(), output / "best"),
            skipped=SkippedLog(output / "skipped.csv", 0.0),
        )
        training.fit()
        return module

    return run


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_a_resumed_run_is_the_uninterrupted_run(run_fit: Callable, tmp_path: Path, ema: float) -> None:
    recipe = smoke_recipe(f"trainer.ema={ema}", "trainer.validate_every=2")
    whole = run_fit(tmp_path / "whole", recipe)
    for after in (3, 5):  # an odd step: back to the checkpoint of the even one before it
        with pytest.raises(Interrupted):
            run_fit(tmp_path / "parts", recipe, interrupt_after=after)
    newest = sorted((tmp_path / "parts" / "checkpoints").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-1000])  # as a failing disk leaves it: the one before is taken
    resumed = run_fit(tmp_path / "parts", recipe)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    for table in ("metrics.csv", "held_out.csv"):
        rows = [[line.split(",")[:6] for line in (tmp_path / run / table).open()] for run in ("whole", "parts")]
        assert rows[0] == rows[1]
    assert len(rows[0]) == 1 + 3  # held-out loss at steps 2, 4 and 6
    best = [load(tmp_path / run / "best").state_dict() for run in ("whole", "parts")]
    assert all(torch.equal(value, best[1][name]) for name, value in best[0].items())
    assert [path.name for path in sorted((tmp_path / "parts" / "checkpoints").iterdir())] == [
        "step-00000004.ckpt",
        "step-00000006.ckpt",
    ]


def test_what_was_trained_to_the_end_is_not_trained_again(run_fit: Callable, tmp_path: Path) -> None:
    recipe = smoke_recipe()
    first = run_fit(tmp_path / "run", recipe)
    again = run_fit(tmp_path / "run", recipe, interrupt_after=1)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())


def test_schedule() -> None:
    factor = schedule(OptimizerConfig(warmup=0.1, schedule="linear"), 100)
    assert [factor(0), factor(4), factor(9), factor(10), factor(55), factor(100)] == [0.1, 0.5, 1.0, 1.0, 0.5, 0.0]
    factor = schedule(OptimizerConfig(warmup=0.1, schedule="cosine"), 100)
    assert factor(55) == pytest.approx(0.5)
    assert factor(32.5) == pytest.approx(0.8536, abs=1e-4)  # (1 + cos 45 degrees) / 2
    assert schedule(OptimizerConfig(warmup=0.1, schedule="constant"), 100)(99) == 1.0


def test_steps_and_ranks_have_random_numbers_of_their_own() -> None:
    seeds = {step_seed(seed, step, rank) for seed in (0, 1) for step in range(100) for rank in range(8)}
    assert len(seeds) == 2 * 100 * 8


def test_biases_and_norms_do_not_decay() -> None:
    module = distillation(smoke_recipe("optimizer.weight_decay=0.1"))
    module.steps = 1
    optimizer = module.optimizer()
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in module.student.named_parameters():
        is_weight = (name.endswith("weight") and "norm" not in name) or name.endswith(("weight_v", "weight_g"))
        assert decay[id(parameter)] == (0.1 if is_weight else 0.0), name


def rank_main(folder: Path) -> None:
    """What each of the two processes runs: its share of the batch, its gradients to a file."""
    parts = split(batch(LENGTHS), 2)
    rank = int(os.environ["RANK"])
    gradients = one_step(
        distillation(smoke_recipe(*OBJECTIVE)), [parts[rank]], devices=2, strategy="ddp_find_unused_parameters_true"
    )
    torch.save(gradients, folder / f"{rank}.pt")


if __name__ == "__main__":
    rank_main(Path(sys.argv[1]))
