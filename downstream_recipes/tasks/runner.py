"""One run of s3prl's own runner, and what run_downstream.py fills in for it."""

import contextlib
import gc
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distiller.common.command import Failed
from distiller.common.files import check_writable
from downstream_recipes.adaptation import compat
from downstream_recipes.tasks import command_checks
from downstream_recipes.tasks.recipes import references, resolve, write_recipe
from downstream_recipes.tasks.tasks import TASKS, Task, find_task
from upstream.errors import UserError, no_such, one_of, require

LOG = "run_downstream.log"  # in the experiment folder
MODES = ("train", "evaluate", "inference")

Arguments = Mapping[str, Any]  # of s3prl's command line, by name; None and False are left out
# their short flags
SHORT = {
    "mode": "-m", "evaluate_split": "-t", "override": "-o", "past_exp": "-e", "init_ckpt": "-i", "config": "-c",
    "downstream": "-d", "downstream_variant": "-v", "upstream": "-u", "upstream_ckpt": "-k",
    "upstream_model_config": "-g", "upstream_refresh": "-r", "upstream_trainable": "-f",
    "upstream_feature_selection": "-s", "upstream_layer_selection": "-l", "expname": "-n", "expdir": "-p",
    "auto_resume": "-a",
}  # fmt: skip


def command_line(arguments: Arguments) -> list[str]:
    """s3prl's command line, without the program."""
    words = []
    for name, value in arguments.items():
        if value is not None and value is not False:
            words += [SHORT.get(name, f"--{name}"), *([] if value is True else [str(value)])]
    return words


def run_s3prl(arguments: Arguments, log: Path) -> None:
    """One run of s3prl in this process.

    Args:
        arguments: `downstream` may be a SUPERB code.
        log: where the traceback of an error is appended.

    Raises:
        UserError: what our upstreams and datasets find.
        Failed: anything that s3prl raises.
    """
    task = TASKS.get(arguments.get("downstream") or "")
    arguments = {**arguments, "downstream": task.downstream} if task else arguments
    compat.install()
    from s3prl import run_downstream

    before = sys.argv
    sys.argv = ["run_downstream.py", *command_line(arguments)]
    try:
        run_downstream.main()
        return
    except (UserError, BrokenPipeError):
        raise
    except Exception as error:  # a task of s3prl's can raise anything
        sys.stdout.flush()  # it may be the log
        failure = in_one_line(error, log)
    finally:
        sys.argv = before
        gc.collect()  # the model, its data loaders and, after an error, progress bars that print a last line
    raise Failed(failure)


def in_one_line(error: Exception, log: Path) -> str:
    """Type and message of an exception; its traceback is appended to `log`, if that can be written."""
    line = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])[:250]
    with contextlib.suppress(OSError):
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            file.write("".join(traceback.format_exception(error)))
        line += f" (traceback in {log})"
    return line


def run_experiment(arguments: Arguments, corpora: Callable[[], Mapping[str, Any]]) -> None:
    """run_downstream.py: fill in what the command line leaves out, check everything, run s3prl.

    Args:
        arguments: every argument by name; None: left out.
        corpora: reads the corpora file; called if the recipe refers to one.

    Raises:
        UserError: an argument is missing or wrong, or as `recipes.resolve`; nothing was written then.
        Failed: as `run_s3prl`.
    """
    mode = arguments["mode"]
    require(mode in (None, *MODES), "-m", mode, one_of(mode, MODES))
    arguments = {**arguments, "device": command_checks.chosen_device(arguments["device"])}
    if arguments["past_exp"]:  # the checkpoint holds everything else
        path = Path(arguments["past_exp"])
        states = command_checks.read_experiment(path)
        folder = path if path.is_dir() else path.parent
        downstream, configuration = getattr(states["Args"], "downstream", ""), states["Config"]
        arguments["mode"] = mode or "train"
    else:
        for name in ("upstream", "downstream"):
            if arguments[name] is None:
                raise UserError(f"{SHORT[name]} is missing: which {name}?")
        task, name = _task(arguments)
        default = Path("result") / "downstream" / (arguments["expname"] or f"{arguments['upstream']}_{name}")
        folder = Path(arguments["expdir"] or default)
        check_writable(folder)
        if task is None and arguments["config"] is None:
            raise no_such(f"-d {name}", name, [*TASKS, *(known.downstream for known in TASKS.values())])
        recipe = Path(arguments["config"] or task.recipe)  # type: ignore[union-attr] - a task, then
        configuration = resolve(recipe, corpora() if references(recipe) else {}, folder)
        downstream = task.downstream if task else name
        mode = mode or ("train" if task is None or task.trained else "evaluate")
        config = folder / f"{name}.yaml"
        arguments |= {"mode": mode, "downstream": downstream, "config": config, "expdir": folder}
    command_checks.check_split(arguments, downstream, configuration)
    command_checks.check_packages(downstream)
    command_checks.check_upstream(arguments["upstream"], arguments["upstream_ckpt"])
    if not arguments["past_exp"]:
        write_recipe(configuration, arguments["config"])
    run_s3prl(arguments, folder / LOG)


def _task(arguments: Arguments) -> tuple[Task | None, str]:
    """The task, if its recipe is here and wanted, and the name of the experiment and its recipe."""
    downstream = arguments["downstream"]
    task = find_task(downstream) if arguments["config"] is None or downstream in TASKS else None
    return task, task.code if task else downstream
