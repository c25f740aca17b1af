"""Two processes against one: the same losses and the same weights, with DDP and with FSDP."""

import csv
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distiller.audio.batch import Batch
from distiller.distillation.distillation_module import Distillation
from distiller.objectives.registry import build
from distiller.recipes.recipe import Recipe, load_recipe
from distiller.training import loop
from distiller.training.loop import Training
from upstream.checkpoint import load, save
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError

CONV = ((8, 10, 5), (8, 3, 2), (8, 3, 2), (8, 3, 2), (8, 3, 2), (8, 2, 2), (16, 2, 2))
TEACHER = EncoderConfig(
    embed_dim=24, num_heads=2, head_dim=12, attention_heads=((0, 1),) * 3, ffn_dims=(32,) * 3, conv_layers=CONV,
    positional_kernel=8, positional_groups=4, hidden_dropout=0, attention_dropout=0, activation_dropout=0,
    feature_dropout=0,
)  # fmt: skip
STUDENT = EncoderConfig(
    embed_dim=16, num_heads=2, head_dim=8, attention_heads=((0, 1),) * 3, ffn_dims=(24,) * 3, conv_layers=CONV,
    projection=False, positional_kernel=8, positional_groups=4, hidden_dropout=0, attention_dropout=0,
    activation_dropout=0, feature_dropout=0,
)  # fmt: skip
STEPS = 4
OBJECTIVES = ("star", "layers")  # without anything to train, and with projections


def batch(lengths: list[int], seed: int) -> Batch:
    random = torch.Generator().manual_seed(seed)
    waveforms = torch.zeros(len(lengths), max(lengths))
    for row, length in enumerate(lengths):
        waveforms[row, :length] = torch.randn(length, generator=random)
    return Batch(waveforms, torch.tensor(lengths), [str(n) for n in lengths], [f"{n}.wav" for n in lengths], [])


def halves(step: int) -> list[Batch]:
    """Two unequal batches of every step."""
    return [batch([9000 - 500 * step, 6000], 2 * step), batch([4000, 800 + 100 * step, 2500], 2 * step + 1)]


class Stream(torch.utils.data.Dataset):
    """Windows of this rank: its half, or both halves for a process that is alone. Stands for dataset and sampler."""

    batch_seconds = 1.0
    augment = None

    def __init__(self, rank: int, world_size: int) -> None:
        self.parts = [rank] if world_size == 2 else [0, 1]
        self.accumulate = len(self.parts)

    def __getitem__(self, place: tuple[int, int]) -> Batch:
        step, part = place
        return replace(halves(step)[part], position=(0, step))

    def start(self, epoch: int, done: int) -> None:
        self.first = done

    def __iter__(self):
        return iter([(step, part) for step in range(getattr(self, "first", 0), 1000) for part in self.parts])


def recipe_of(strategy: str, devices: int, objective: str) -> Recipe:
    keys = [f"trainer.steps={STEPS}", "trainer.checkpoint_every=2", "trainer.validate_every=2", "optimizer.lr=1e-2"]
    keys += ["trainer.accelerator=cpu", f"trainer.strategy={strategy}", f"trainer.devices={devices}"]
    return load_recipe("star", [*keys, f"objective={objective}", "optimizer.clip=0.5"])


def train(folder: Path, strategy: str, devices: int, objective: str, die_at: int | None = None) -> Distillation:
    """The run of this process; held out is one batch, so that the second rank has none of it."""
    torch.manual_seed(0)
    recipe = recipe_of(strategy, devices, objective)
    teacher, student = SpeechEncoder(TEACHER), SpeechEncoder(STUDENT)
    module = Distillation([teacher], student, build(recipe.objective, TEACHER, STUDENT), recipe)
    rank = int(os.environ.get("RANK", 0))
    if die_at is not None and rank == 1:
        step = loop.optimiser_step
        loop.optimiser_step = lambda *step_of: (
            os.kill(os.getpid(), 9) if module.progress.step == die_at else step(*step_of)
        )
    output = folder / f"{strategy}{devices}{objective}"
    training = Training(
        module,
        Stream(rank, devices),
        Stream,
        recipe.trainer,
        output,
        held_out=[lambda: batch([5000, 3000], 99)],
        keep_best=lambda trained: save(trained.kept_student(), output / "best"),
    )
    training.fit()
    if rank == 0:
        save(module.kept_student(), output / "student")
    return module


def ranks(folder: Path, *arguments: str) -> list[subprocess.Popen]:
    """Two processes of this file, as torchrun would start them."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    shared = os.environ | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[3]), "TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0",
        "LOCAL_WORLD_SIZE": "2",
    }  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), *arguments],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]


def rows(output: Path, table: str = "metrics.csv") -> list[dict[str, float]]:
    with (output / table).open() as file:
        lines = list(csv.DictReader(file))
    apart = ("step_seconds", "audio_seconds")  # the latter is the first rank's share, times the ranks
    return [{key: float(value) for key, value in line.items() if key not in apart} for line in lines]


def assert_same_run(one: Path, other: Path) -> None:
    for table in ("metrics.csv", "held_out.csv"):
        for row, same in zip(rows(one, table), rows(other, table), strict=True):
            assert row == pytest.approx(same, rel=2e-5), table
    for name in ("student", "best"):
        weights, theirs = load(one / name).state_dict(), load(other / name).state_dict()
        assert weights.keys() == theirs.keys()
        for key, value in weights.items():
            torch.testing.assert_close(theirs[key], value, rtol=1e-3, atol=2e-5, msg=f"{name} {key}")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_are_one_process(tmp_path: Path, strategy: str) -> None:
    """Losses, gradient norms, held-out loss and weights of every objective, over four clipped steps."""
    started = ranks(tmp_path, strategy, *OBJECTIVES)
    errors = [process.communicate(timeout=280)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    for objective in OBJECTIVES:
        train(tmp_path, "auto", 1, objective)
        assert len(rows(tmp_path / f"auto1{objective}")) == STEPS
        assert_same_run(tmp_path / f"auto1{objective}", tmp_path / f"{strategy}2{objective}")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_lost_rank_ends_the_run_which_then_continues(tmp_path: Path, strategy: str) -> None:
    """kill -9 of the second rank in its fourth step: a sentence, and the second step's checkpoint to go on from."""
    first, second = ranks(tmp_path, strategy, "star", "--die-at", "3")
    assert second.wait(timeout=200) == -9
    error = first.communicate(timeout=60)[1]  # it notices at once, not after the collectives' timeout
    assert first.returncode == 2, error
    assert "another process of this run (of 2) exited" in error
    assert "Traceback" not in error
    output = tmp_path / f"{strategy}2star"
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step-00000002.ckpt"]
    for process in ranks(tmp_path, strategy, "star"):
        assert process.wait(timeout=200) == 0, process.communicate()[1]
    train(tmp_path, "auto", 1, "star")
    assert_same_run(tmp_path / "auto1star", output)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (["trainer.ema=0.9"], "trainer.ema is 0.9, but it must be 0 with trainer.strategy fsdp"),
        (["trainer.precision=16-mixed"], "but it must be 32-true or bf16-mixed with trainer.strategy fsdp"),
        (["student=pruned"], "student.name is 'pruned', but it must be narrow with trainer.strategy fsdp"),
    ],
)
def test_what_cannot_be_split(keys: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_recipe("star", ["trainer.strategy=fsdp", *keys])


def rank_main(folder: Path, strategy: str, *rest: str) -> int:
    die_at = int(rest[-1]) if "--die-at" in rest else None
    try:
        for objective in (name for name in rest if name in OBJECTIVES):
            train(folder, strategy, 2, objective, die_at)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(rank_main(Path(sys.argv[1]), *sys.argv[2:]))
