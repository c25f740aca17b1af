"""One task, by s3prl's own runner."""

import argparse
import contextlib
import difflib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upstream.errors import UserError

if TYPE_CHECKING:
    from downstream_recipes.tasks.tasks import Task

LOG = "run_downstream.log"  # in the experiment folder


CONTINUING = "run the same command with -a to continue from its newest checkpoint"


def parse_arguments(argv: Sequence[str], description: str | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The flags that have a default of ours, and the rest of s3prl's as they are."""
    parser = argparse.ArgumentParser(
        prog="run_downstream.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="All other flags are s3prl's: python -m s3prl.run_downstream -h lists them.",
        allow_abbrev=False,
    )
    parser.add_argument("-m", "--mode", choices=["train", "evaluate", "inference"], help="default: train")
    parser.add_argument("-t", "--evaluate_split", help="the split to evaluate, or the wav to infer from")
    parser.add_argument("-u", "--upstream", help="an entry of upstream/hubconf.py, or of s3prl")
    parser.add_argument("-k", "--upstream_ckpt", help="its checkpoint")
    parser.add_argument("-d", "--downstream", help="a SUPERB code, or s3prl's name of a task")
    parser.add_argument("-c", "--config", help="a recipe; ours of the task when left out")
    parser.add_argument("-n", "--expname", help="result/downstream/EXPNAME is the experiment folder")
    parser.add_argument("-p", "--expdir", help="the experiment folder itself")
    parser.add_argument("-e", "--past_exp", help="a checkpoint or experiment folder to evaluate or to continue")
    parser.add_argument("--corpora", help="YAML file with the corpora's paths; $SUPERB_CORPORA when left out")
    parser.add_argument("--device", help="cuda or cpu")
    return parser.parse_known_args(argv)


def s3prl_arguments(argv: Sequence[str]) -> list[str]:
    """s3prl's own command line for ours; the resolved recipe is written to the experiment folder on the way.

    Raises:
        UserError: no upstream or task, or anything `recipes.resolve` or one of the `command_checks` finds.
    """
    from downstream_recipes.tasks.command_checks import check_device, check_folder, check_split, read_experiment

    ours, rest = parse_arguments(argv)
    split = ours.evaluate_split or "test"
    device = ours.device or ("cuda" if _cuda_is_available() else "cpu")
    check_device(device)
    passed_on = {"-t": ours.evaluate_split, "-k": ours.upstream_ckpt, "--device": device}
    if ours.past_exp:  # the checkpoint holds everything else
        states = read_experiment(Path(ours.past_exp))
        given = {"-m": ours.mode or "train", "-e": ours.past_exp, **passed_on}
        given |= {"-c": ours.config, "-u": ours.upstream, "-d": ours.downstream, "-n": ours.expname, "-p": ours.expdir}
        check_split(given["-m"], split, getattr(states["Args"], "downstream", ""), states["Config"], rest)
        return [*_flags(given), *rest]
    for flag, value in (("-u", ours.upstream), ("-d", ours.downstream)):
        if value is None:
            raise UserError(f"{flag} is missing: which {'upstream' if flag == '-u' else 'task'}?")
    task, name = _task(ours)
    downstream = task.downstream if task else name
    mode = ours.mode or ("train" if task is None or task.trained else "evaluate")
    expdir = _experiment_folder(ours)
    check_folder(expdir)
    recipe = Path(ours.config or _recipe_of(task, name))
    configuration = _configuration(recipe, ours.corpora, expdir)
    check_split(mode, split, downstream, configuration, rest)
    given = {
        "-m": mode,
        "-u": ours.upstream,
        "-d": downstream,
        "-c": _write(configuration, expdir / f"{name}.yaml"),
        "-p": str(expdir),
        **passed_on,
    }
    return [*_flags(given), *rest]


def _task(ours: argparse.Namespace) -> tuple["Task | None", str]:
    """The task that we have a recipe for, if any, and what the experiment and its recipe are called after."""
    from downstream_recipes.tasks.tasks import TASKS, find_task

    task = find_task(ours.downstream) if ours.config is None or ours.downstream in TASKS else None
    return task, task.code if task else ours.downstream


def _experiment_folder(ours: argparse.Namespace) -> Path:
    """Where the run writes."""
    if ours.past_exp:
        past = Path(ours.past_exp)
        return past if past.is_dir() else past.parent
    return Path(ours.expdir or Path("result") / "downstream" / (ours.expname or f"{ours.upstream}_{_task(ours)[1]}"))


def _flags(values: dict[str, str | None]) -> list[str]:
    return [text for flag, value in values.items() if value is not None for text in (flag, value)]


def _cuda_is_available() -> bool:
    import torch

    return torch.cuda.is_available()


def _recipe_of(task: "Task | None", name: str) -> Path:
    if task is None:
        from downstream_recipes.tasks.tasks import TASKS

        nearest = difflib.get_close_matches(name, [*TASKS, *(task.downstream for task in TASKS.values())], 1, 0)[0]
        raise UserError(f"-d {name}: no recipe of that name (nearest: {nearest}); give one of your own with -c")
    return task.recipe


def _configuration(recipe: Path, corpora: str | None, expdir: Path) -> dict[str, Any]:
    from downstream_recipes.tasks.command_checks import check_sections
    from downstream_recipes.tasks.recipes import REFERENCE, read_corpora, read_recipe, resolve

    if not recipe.is_file():
        raise UserError(f"-c {recipe}: no such file")
    needs_corpora = REFERENCE.search(read_recipe(recipe)) is not None
    configuration = resolve(recipe, read_corpora(corpora) if needs_corpora else {}, expdir)
    check_sections(recipe, configuration)
    return configuration


def _write(configuration: dict[str, Any], path: Path) -> str:
    import yaml

    from distiller.common.files import write_text

    return str(write_text(path, yaml.safe_dump(configuration, sort_keys=False)))


def run(argv: Sequence[str]) -> None:
    """One run of s3prl in this process.

    Raises:
        UserError: anything wrong with the command line, the corpora or the checkpoint.
    """
    arguments = s3prl_arguments(argv)
    from downstream_recipes.adaptation import compat

    compat.install()
    from s3prl import run_downstream

    from downstream_recipes.tasks.command_checks import check_upstream

    ours, _ = parse_arguments(arguments)
    check_upstream(ours.upstream, ours.upstream_ckpt)
    before = sys.argv
    sys.argv = ["run_downstream.py", *arguments]
    try:
        run_downstream.main()
    finally:
        sys.argv = before


def in_one_line(error: Exception, log: Path) -> str:
    """What s3prl raised, where its traceback is appended to: `log`, unless that cannot be written."""
    told = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])[:250]
    with contextlib.suppress(OSError):
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            file.write("".join(traceback.format_exception(error)))
        told += f" (all of it in {log})"
    return told
