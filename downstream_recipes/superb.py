"""The whole SUPERB table of one upstream: every task trained, evaluated and scored, resumable.

python downstream_recipes/superb.py -u starhubert -k exp/star/student --corpora corpora.yaml --output exp/superb/star
python downstream_recipes/superb.py -u starhubert -k exp/star/student --corpora mini     # synthesised, on a laptop
"""

import argparse
import contextlib
import difflib
import logging
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from distiller.common.command import run_command
from distiller.common.files import lock_folder
from downstream_recipes.suite.gpus import run_on_gpus
from downstream_recipes.suite.procedures import run_task
from downstream_recipes.suite.report import done_tasks, rows_beside, write_report, write_submission_of
from downstream_recipes.suite.suite import Suite, TaskFailed, check_kept, finished, forget, keep, say
from downstream_recipes.tasks.recipes import read_corpora
from downstream_recipes.tasks.tasks import TASKS, Task
from upstream.errors import UserError


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="superb.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("-u", "--upstream", required=True, help="an entry of upstream/hubconf.py, or of s3prl")
    parser.add_argument("-k", "--checkpoint", help="whatever upstream.checkpoint.load opens, or a URL")
    parser.add_argument("-g", "--model-config", help="as s3prl's -g: STaR's YAML, states=all, padding=reference")
    parser.add_argument("--tasks", default="all", help="all (the table's ten), or codes with commas: pr,sid")
    parser.add_argument("--corpora", help="YAML file of paths, or mini; $SUPERB_CORPORA when left out")
    parser.add_argument("--output", type=Path, help="default: exp/superb/<upstream>")
    parser.add_argument("--overwrite", action="store_true", help="start the named tasks afresh")
    parser.add_argument("--lr-search", action="store_true", help="train with 1e-1 .. 1e-7, choose on dev")
    parser.add_argument("--submission", action="store_true", help="write the leaderboard's predict.zip too")
    parser.add_argument("--beside", type=Path, action="append", default=[], help="another output, a row of the table")
    parser.add_argument(
        "--feature-cache",
        type=float,
        metavar="GB",
        help="memory for features, which are then computed once (default: 1 on miniature corpora, else 0)",
    )
    parser.add_argument("--gpus", help="their numbers with commas: that many tasks side by side")
    parser.add_argument("--device", help="cuda or cpu; default: cuda where there is one")
    parser.add_argument("--no-report", action="store_true", help=argparse.SUPPRESS)  # a process of --gpus
    return parser.parse_args(argv)


def chosen_tasks(text: str) -> list[Task]:
    """Raises: UserError: an unknown code."""
    if text == "all":
        return [task for task in TASKS.values() if not task.extra]
    codes = [code.strip() for code in text.split(",") if code.strip()]
    for code in codes:
        if code not in TASKS:
            nearest = difflib.get_close_matches(code, TASKS, n=1, cutoff=0)[0]
            raise UserError(f"--tasks {code}: no such task (nearest: {nearest}); known are {', '.join(TASKS)}")
    return [TASKS[code] for code in codes]


def chosen_gpus(text: str) -> list[str]:
    """Raises: UserError: not numbers (or a GPU's UUID) with commas, each once."""
    gpus = [gpu.strip() for gpu in text.split(",")]
    if not all(gpus) or len(set(gpus)) < len(gpus):
        raise UserError(f"--gpus {text}: numbers with commas are needed, each once, like 0,1")
    return gpus


def output_of(arguments: argparse.Namespace) -> Path:
    return (arguments.output or Path("exp") / "superb" / arguments.upstream).absolute()


def open_suite(arguments: argparse.Namespace, output: Path) -> Suite:
    """Raises: UserError: the corpora file, the checkpoint or a number is wrong."""
    import torch

    if arguments.feature_cache is not None and not 0 <= arguments.feature_cache < math.inf:
        raise UserError(f"--feature-cache is {arguments.feature_cache}, but it must be GB, 0 or more")
    return Suite(
        upstream=arguments.upstream,
        checkpoint=arguments.checkpoint,
        model_config=arguments.model_config,
        corpora=read_corpora(arguments.corpora),
        output=output,
        device=arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        lr_search=arguments.lr_search,
        feature_cache=arguments.feature_cache,
    )


def run_here(suite: Suite, tasks: Sequence[Task]) -> list[str]:
    """The tasks one after the other in this process; what went wrong, a line each. Finished tasks are kept."""
    failures = []
    for number, task in enumerate(tasks, start=1):
        if finished(suite, task) is not None:
            say(f"[{number}/{len(tasks)}] {task.code}: done before")
            continue
        say(f"[{number}/{len(tasks)}] {task.code}: running, output in {suite.output / task.code}")
        start = time.monotonic()
        try:
            with lock_folder(suite.output, f".{task.code}.lock"):  # a killed --gpus may have left a process at it
                keep(suite, task, None)
                scores, note = run_task(suite, task)
                keep(suite, task, scores, note)
        except (UserError, TaskFailed, OSError) as error:
            failures.append(f"{task.code}: {complaint(error, suite.output)}")
            say(f"[{number}/{len(tasks)}] {failures[-1]}")
            continue
        values = ", ".join(
            f"{score.metric} {score.value:.4g}{score.unit if score.unit == '%' else ''}" for score in scores
        )
        say(f"[{number}/{len(tasks)}] {task.code}: {values} ({time.monotonic() - start:.0f} s)")
    return failures


def complaint(error: Exception, output: Path) -> str:
    """The sentence for what a user can mend; a file that is gone, a full disk too."""
    if isinstance(error, OSError):
        return f"{error.filename or output}: {error.strerror or error}"
    return str(error)


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: _carry_out(parse_arguments(given), given))


def _carry_out(arguments: argparse.Namespace, argv: Sequence[str]) -> int:
    if arguments.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # s3prl enters torch.cuda.device(--device) wherever it sees a GPU
    # before s3prl does it, for a stream that is closed with its task; its warnings are about what it does not need here
    logging.basicConfig(level=logging.ERROR)
    output = output_of(arguments)
    # a process of --gpus works in an output that its parent holds
    hold = contextlib.nullcontext() if arguments.no_report else lock_folder(output)
    try:
        with hold:
            failures = run_suite(arguments, output, argv)
    except (UserError, OSError) as error:
        say(f"superb.py: {complaint(error, output)}")
        return 2
    for failure in failures:
        say(f"superb.py: {failure}")
    return 1 if failures else 0


def run_suite(arguments: argparse.Namespace, output: Path, argv: Sequence[str]) -> list[str]:
    """The tasks and the table; what went wrong in tasks, a line each."""
    tasks, suite = chosen_tasks(arguments.tasks), open_suite(arguments, output)
    gpus = chosen_gpus(arguments.gpus) if arguments.gpus else []
    overwrite = arguments.overwrite and not arguments.no_report
    check_kept(suite, tasks, overwrite)
    if not arguments.no_report:
        rows_beside(arguments.beside, suite.miniature)  # a wrong one is said now, not when the tasks are done
    unfinished = [task for task in tasks if overwrite or finished(suite, task) is None]
    if unfinished:
        say(f"{suite.upstream}: {suite.described['parameters'] / 1e6:.2f} M parameters")
    for task in tasks if overwrite else ():  # nothing is removed before all of the above is right
        forget(suite, task)
    failures = run_on_gpus(output, unfinished, gpus, argv) if gpus else run_here(suite, tasks)
    if not arguments.no_report and (done_tasks(output) or not failures):
        print(write_report(suite, arguments.beside))
        if arguments.submission:
            print(f"submission: {write_submission_of(suite, output / 'submission')}")
    return failures


if __name__ == "__main__":
    sys.exit(main())
