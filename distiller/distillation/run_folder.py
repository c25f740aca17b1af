"""A run's folder: which recipe and inputs made it, and whether another run may continue or replace it."""

import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from distiller.common.files import LOCK, read_csv, remove, sweep, write_json
from distiller.common.process import launcher, rank
from distiller.common.values import difference, flatten
from distiller.corpora.config import AUTO, SCANS
from distiller.recipes.recipe import RESUMABLE, AnyRecipe, Recipe, first_difference, in_batches, save, to_dict
from distiller.recipes.yaml_files import read
from distiller.training.devices import device_count
from upstream.errors import UserError

RECIPE, REPORT, INPUTS, SKIPPED, BATCH = "recipe.yaml", "report.json", "inputs.json", "skipped.csv", "batch.json"
TEACHERS, LAYERS_OF = "set of teachers", "layers-of-"  # an input; the folder of a further teacher's clusters

# Placement changes the last bits of the results, so it may not change during a run; a complete run is only shown.
PLACEMENT = frozenset({"trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"})

# Inputs whose content is recorded in INPUTS; their location does not matter.
PATHS = {
    "teacher": ("teacher",), "corpus": ("corpus.path",), "units": ("objective.targets", "objective.units.targets"),
    "model": ("model",), TEACHERS: ("teachers",), "transcripts": ("text.path",),
}  # fmt: skip

# Files that may be in the folder before its run: shells and schedulers write their logs there.
LOGS = frozenset({".log", ".txt", ".out", ".err"})

# What a run writes before its first checkpoint and another would mistake for its own. (It replaces the rest.)
OF_A_START = (
    *(f"corpus/{name}" for name in SCANS), INPUTS, SKIPPED, BATCH,
    *(folder + name for folder in ("", f"{LAYERS_OF}*/") for name in ("clusters.json", "cka.csv", "similarity.png")),
    "metrics.csv", "joint/metrics.csv", "tensorboard/events.out.tfevents.*", "joint/tensorboard/events.out.tfevents.*",
    "corpus/.busy", "calibration/.busy",
)  # fmt: skip


def is_complete(output: Path) -> bool:
    """Whether a run has finished here: its report is the last file that a run writes."""
    return os.path.isfile(output / REPORT)  # False also without permission to look


def has_results(output: Path) -> bool:
    """Whether a run has left something to continue from: a checkpoint, or what follows it."""
    return any((output / name).exists() for name in ("pruned", "student", "model", REPORT)) or any(
        output.glob("**/checkpoints/*.ckpt")
    )


def check_same_recipe(output: Path, recipe: AnyRecipe, ignore: Collection[str] = ()) -> None:
    """
    Raises:
        UserError: the output was made with another recipe; names the first key that differs, and both values.
    """
    allowed = RESUMABLE | (PLACEMENT if is_complete(output) else frozenset()) | set(ignore)
    if difference := first_difference(output / RECIPE, recipe, allowed):
        raise UserError(f"{output} was made with another recipe: {difference}; choose another --output, or --overwrite")


def prepare(output: Path, recipe: AnyRecipe, overwrite: bool) -> None:
    """Make `output` ready for a run of `recipe` to begin or continue, and save the recipe in it.

    A run that has no checkpoint yet may be replaced by one of another recipe.

    Args:
        overwrite: remove all files of an earlier run.

    Raises:
        UserError: the files there are not a run's, or a run's of another recipe.
    """
    files = [path for path in output.iterdir() if path.name != LOCK]
    foreign = [path for path in files if not (path.name.startswith(".") or (path.is_file() and path.suffix in LOGS))]
    if not (output / RECIPE).is_file():
        if foreign:
            raise UserError(
                f"{output} is not a run folder (it contains {foreign[0].name} but no {RECIPE}); choose another --output"
            )
    elif overwrite:
        last = {REPORT: 0, RECIPE: 2}  # an interrupted removal leaves an incomplete run that can be removed again
        for path in sorted(files, key=lambda path: last.get(path.name, 1)):
            remove(path)
    elif has_results(output):
        check_same_recipe(output, recipe, known_paths(output))
        sweep(output)
        if moved(output, recipe):
            return  # `accept_inputs` saves it
    else:
        sweep(output)
        if _differs(output, recipe):
            forget_start(output)
    save(recipe, output / RECIPE)


def _differs(output: Path, recipe: AnyRecipe) -> bool:
    """Whether a run folder is another recipe's, or one that can no longer be read."""
    try:
        return first_difference(output / RECIPE, recipe, RESUMABLE) is not None
    except UserError:
        return True


def with_settled_batches(output: Path, recipe: Recipe) -> Recipe:
    """corpus.batch_seconds=auto replaced by the values of the run in `output`, if its steps have that many seconds."""
    if recipe.corpus.batch_seconds != AUTO or not has_results(output):
        return recipe
    try:
        known = flatten(read(output / RECIPE))
        seconds, count = known["corpus.batch_seconds"], known["trainer.accumulate"]
        devices = device_count(known["trainer.devices"]) * known["trainer.num_nodes"]
        settled = in_batches(recipe, devices, seconds)
        return settled if settled.trainer.accumulate == count else recipe
    except (UserError, KeyError, TypeError, ValueError):  # `check_same_recipe` reports the difference
        return recipe


# --- a start that fails


@contextmanager
def forgetting_a_failed_start(output: Path) -> Iterator[None]:
    """If the block fails before its first checkpoint, leave nothing but the list of unusable audio, if there is one."""
    try:
        yield
    except Exception:
        if not has_results(output):
            with suppress(OSError):  # the error of the block is more informative
                forget_start(output, but=(SKIPPED,) if read_csv(output / SKIPPED) else ())
                rest = {path.name for path in output.iterdir() if not path.name.startswith(".")} - {RECIPE}
                if not rest and launcher() is None:  # torchrun's other processes may still write there
                    for path in output.glob(".busy"):
                        path.unlink()
                    (output / RECIPE).unlink(missing_ok=True)
        raise


def forget_start(output: Path, but: Collection[str] = ()) -> None:
    """Remove what a run without a checkpoint has written, and nothing else."""
    for pattern in OF_A_START:
        for path in output.glob(pattern):
            if path.name not in but and path.is_file():
                path.unlink()
    for name in ("corpus", "calibration", "tensorboard", "joint/tensorboard", "joint", f"{LAYERS_OF}*"):
        for path in output.glob(name):
            with suppress(OSError):  # it contains something of the user's
                path.rmdir()


# --- what a run was made from


def known_paths(output: Path) -> set[str]:
    """The keys of paths that may change, since the identity of their content is known."""
    return {key for name in _inputs(output) for key in PATHS[name]}


def moved(output: Path, recipe: AnyRecipe) -> bool:
    """Whether a path differs from the one when the run began."""
    return first_difference(output / RECIPE, recipe, RESUMABLE | PLACEMENT) is not None


def accept_inputs(output: Path, recipe: AnyRecipe, found: dict[str, dict[str, Any]]) -> None:
    """Compare a run's inputs with those that it began with, or record them when it begins.

    Args:
        found: the identity of each of PATHS.

    Raises:
        UserError: one of them has changed.
    """
    known = _inputs(output)
    for name, values in {**{key: {} for key in known}, **found}.items():
        if other := difference(known.get(name, values), values):
            key = next((key for key in PATHS[name] if key in flatten(to_dict(recipe))), PATHS[name][0])
            raise UserError(
                f"{output} was made with another {name}: {other}; change {key}, or choose another --output, or "
                "--overwrite"
            )
    if rank() == 0 and not is_complete(output):
        write_json(output / INPUTS, found)
        save(recipe, output / RECIPE)


def _inputs(output: Path) -> dict[str, Any]:
    try:
        values = json.loads((output / INPUTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing, from an older version, or damaged: then the paths count
        return {}
    return values if isinstance(values, dict) and values.keys() <= PATHS.keys() else {}
