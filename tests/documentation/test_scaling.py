"""docs/scaling.md: its commands are accepted, its numbers are what the formulas give."""

import csv
import shlex
from pathlib import Path

import pytest

from distiller import corpus as preparation_command
from distiller import run
from distiller.distillation.plan import teacher_shape
from distiller.recipes.command_line import recipe_of
from distiller.recipes.recipe import load_recipe
from distiller.training.devices import device_count
from upstream.cost import count_macs

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "scaling.md").read_text()
LAUNCHERS = ("python ", "srun ", "torchrun ")
COMMANDS = [shlex.split(line) for line in TEXT.splitlines() if "distiller/" in line and line.startswith(LAUNCHERS)]
TRAINING = [words for words in COMMANDS if "distiller/run.py" in words]
LIBRISPEECH = {"star-hubert-100h": 100.6, "star-hubert-960h": 960.9}
PEAK = 989e12


def option(words: list[str], name: str, default: int = 1) -> int:
    return int(words[words.index(name) + 1]) if name in words else default


@pytest.mark.parametrize("words", TRAINING, ids=" ".join)
def test_training_commands(words: list[str]) -> None:
    """Accepted; as many processes as devices; the recipe's own global batch."""
    arguments = [*words[words.index("distiller/run.py") + 1 :], "--dry-run"]  # the corpus is not on this machine
    recipe = recipe_of(run.parser().parse_intermixed_args(arguments))
    devices, nodes = device_count(recipe.trainer.devices), recipe.trainer.num_nodes
    if "torchrun" in words:
        assert (option(words, "--nproc-per-node"), option(words, "--nnodes")) == (devices, nodes)
    if "srun" in words:
        assert f"#SBATCH --nodes={nodes}\n" in TEXT
        assert f"#SBATCH --ntasks-per-node={devices}\n" in TEXT
        assert f"#SBATCH --cpus-per-task={recipe.corpus.workers + 1}\n" in TEXT
    plain = load_recipe(words[words.index("--recipe") + 1], ["corpus.path=x"])
    mine, theirs = (one.corpus.batch_seconds * one.trainer.accumulate for one in (recipe, plain))
    assert mine * devices * nodes == theirs


def test_other_commands() -> None:
    others = [words for words in COMMANDS if "distiller/corpus.py" in words]
    assert len(others) == 2
    for words in others:
        assert words[0] == "python"
        preparation_command.parser().parse_args(words[2:])
    assert len(TRAINING) == 8


def step_flops() -> dict[str, float]:
    """FLOPs for each second of audio."""
    teacher, _ = teacher_shape("facebook/hubert-base-ls960")
    student = load_recipe("star-hubert-960h", ["corpus.path=x"]).student.shape(teacher)
    whole, narrow = (count_macs(config, 160_000) / 10 for config in (teacher, student))
    return {
        "star": 2 * (whole + 3 * narrow),
        "joint": 2 * (whole + 3 * whole),
        "final": 2 * (whole + 3 * whole * 654.1 / 1669),
    }


def test_computed_hours() -> None:
    flops = step_flops()
    assert [f"**{value / 1e9:.1f} GFLOP**" in TEXT for value in flops.values()] == [True] * 3
    for name, hours in LIBRISPEECH.items():
        audio = hours * load_recipe(name, ["corpus.path=x"]).trainer.epochs
        assert f"{audio:,.0f} h |" in TEXT
        for utilisation in (0.33, 0.2):
            one = audio * flops["star"] / PEAK / utilisation
            assert f"| {utilisation:.0%} | {one:.1f} h | {one / 8:.2f} h |".replace("%", " %") in TEXT
    assert 12_000 * flops["star"] / PEAK == pytest.approx(0.33, abs=0.005)
    joint, final = (640 * steps / 3600 for steps in (50_000, 25_000))
    skill = (joint * flops["joint"] + final * flops["final"]) / PEAK / 0.33
    assert f"{joint + final:,.0f} h | 33 % | {skill:.1f} h | {skill / 8:.2f} h" in TEXT


def test_measured_rates() -> None:
    """The table of formats is that of docs/results/data.csv."""
    with (ROOT / "docs/results/data.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["workers"] == "0"]
    rates = {(row["format"], row["rate"]): float(row["realtime"]) for row in rows}
    for title, name in (("FLAC files", "flac"), ("WAV files", "wav")):
        assert f"| {title} | {rates[name, '16000']:,.0f} | {rates[name, '44100']:,.0f} |" in TEXT
        assert f"| {12_000 / rates[name, '16000']:.1f} (44.1 kHz: {12_000 / rates[name, '44100']:.0f}) |" in TEXT
    for name in ("wav", "flac"):
        rate = rates[f"prepared {name}", "16000"]
        assert f"| prepared, `--format {name}` | {rate:,.0f} |" in TEXT
        assert f"| {12_000 / rate:.1f} |" in TEXT


def test_measured_steps() -> None:
    """The table of steps is that of docs/results/speed.csv, where a number that was not measured is none."""
    with (ROOT / "docs/results/speed.csv").open() as file:
        rows = list(csv.DictReader(file))
    columns = ("ms", "times_real_time", "peak_gb", "real_time_factor")
    numbers = [[row[column] for column in columns if row[column]] for row in rows]
    assert all(
        values and (row["card"] == "not measured") == (set(values) == {"not measured"})
        for row, values in zip(rows, numbers, strict=True)
    )
    newest = {row["what"]: row["times_real_time"] for row in rows}
    for row in rows:
        if f"| {row['what']} |" in TEXT and row["card"] != "not measured":
            speed = row["times_real_time"].replace(",", "")
            speed = f"{int(speed):,}" if speed.isdecimal() else speed
            line = next(line for line in TEXT.splitlines() if line.startswith(f"| {row['what']} |"))
            assert f"| {speed}x" in line
            assert not row["peak_gb"] or f"| {row['peak_gb']} GB |" in line
            assert newest[row["what"]] in line or newest[row["what"]] == row["times_real_time"]
    assert sum(line.endswith("| not measured |") for line in TEXT.splitlines()) == 8
