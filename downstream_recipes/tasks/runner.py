"""One run of s3prl's own runner, and what run_downstream.py fills in for it."""

import contextlib
import gc
import sys
import traceback
from pathlib import Path

from distiller.common.command import Failed
from downstream_recipes.adaptation import compat
from downstream_recipes.tasks import command_checks
from downstream_recipes.tasks.command_line import MODES, Arguments, command_line
from downstream_recipes.tasks.experiments import Corpora, planned
from downstream_recipes.tasks.recipes import write_recipe
from downstream_recipes.tasks.tasks import TASKS
from upstream.errors import UserError, one_of, require

LOG = "run_downstream.log"  # in the experiment folder


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
    except Exception as error:  # an s3prl task can raise anything
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
        with log.open("a", errors="backslashreplace") as file:
            file.write("".join(traceback.format_exception(error)))
        line += f" (traceback in {log})"
    return line


def run_experiment(arguments: Arguments, corpora: Corpora) -> None:
    """run_downstream.py: fill in what the command line leaves out, check everything, run s3prl.

    Args:
        arguments: every argument by name, including `corpora`; None: left out.
        corpora: as in `experiments.planned`.

    Raises:
        UserError: an argument is missing or wrong, or as `recipes.resolve`; nothing has been written.
        Failed: as `run_s3prl`.
    """
    mode = arguments["mode"]
    require(mode in (None, *MODES), "-m", mode, one_of(mode, MODES))
    plan = planned({**arguments, "device": command_checks.chosen_device(arguments["device"])}, corpora)
    command_checks.check_override(arguments["override"], arguments, plan.configuration)
    command_checks.check_split(plan.arguments, plan.downstream, plan.configuration)
    command_checks.check_packages(plan.downstream)
    command_checks.check_upstream(plan.upstream, plan.checkpoint)
    if plan.new:
        write_recipe(plan.configuration, plan.arguments["config"])
    run_s3prl(plan.arguments, plan.folder / LOG)
