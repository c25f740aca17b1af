"""The whole SUPERB table of one upstream: every task trained, evaluated and scored, resumable.

python downstream_recipes/superb.py -u starhubert -k exp/star/student --corpora corpora.yaml --output exp/superb/star
python downstream_recipes/superb.py -u starhubert -k exp/star/student --corpora mini     # synthesised, on a laptop
"""

import argparse
import difflib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from downstream_recipes.recipes import read_corpora
from downstream_recipes.suite import Suite, TaskFailed, finished, forget, keep, say
from downstream_recipes.suite_report import done_tasks, write_report, write_submission_of
from downstream_recipes.suite_tasks import run_task
from downstream_recipes.tasks import TASKS, Task
from upstream.errors import UserError

POLL = 2.0  # seconds between looks at the processes of several GPUs


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


def open_suite(arguments: argparse.Namespace) -> Suite:
    """Raises: UserError: the corpora file or the checkpoint is wrong."""
    import torch

    output = arguments.output or Path("exp") / "superb" / arguments.upstream
    return Suite(
        upstream=arguments.upstream,
        checkpoint=arguments.checkpoint,
        model_config=arguments.model_config,
        corpora=read_corpora(arguments.corpora),
        output=output.absolute(),
        device=arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"),
    )


def run_here(suite: Suite, tasks: Sequence[Task], lr_search: bool) -> list[str]:
    """The tasks one after the other in this process; what went wrong, a line each. Finished tasks are kept."""
    failures = []
    for number, task in enumerate(tasks, start=1):
        if finished(suite, task) is not None:
            say(f"[{number}/{len(tasks)}] {task.code}: done before")
            continue
        say(f"[{number}/{len(tasks)}] {task.code}: running, output in {suite.output / task.code}")
        start = time.monotonic()
        keep(suite, task, None)
        try:
            scores, note = run_task(suite, task, lr_search)
        except (UserError, TaskFailed) as error:
            failures.append(f"{task.code}: {error}")
            say(f"[{number}/{len(tasks)}] {failures[-1]}")
            continue
        keep(suite, task, scores, note)
        values = ", ".join(
            f"{score.metric} {score.value:.4g}{score.unit if score.unit == '%' else ''}" for score in scores
        )
        say(f"[{number}/{len(tasks)}] {task.code}: {values} ({time.monotonic() - start:.0f} s)")
    return failures


def run_on_gpus(suite: Suite, tasks: Sequence[Task], gpus: Sequence[str], argv: Sequence[str]) -> list[str]:
    """A process per task, as many at a time as there are GPUs."""
    waiting, running, failures = list(tasks), {}, []
    while waiting or running:
        for gpu in gpus:
            if gpu not in running and waiting:
                running[gpu] = _start(suite, waiting.pop(0), gpu, argv)
        time.sleep(POLL)
        for gpu, (task, process, log) in list(running.items()):
            if process.poll() is not None:
                del running[gpu]
                if process.returncode != 0:
                    failures.append(f"{task.code}: {(log.read_text().splitlines() or ['no output'])[-1]}")
                say(f"{task.code}: {'done' if process.returncode == 0 else 'failed'} (GPU {gpu})")
    return failures


def _start(suite: Suite, task: Task, gpu: str, argv: Sequence[str]) -> tuple[Task, subprocess.Popen, Path]:
    log = suite.output / f"{task.code}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    say(f"{task.code}: running on GPU {gpu}, output in {log}")
    own = ["--tasks", task.code, "--no-report", "--device", "cuda"]
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, __file__, *argv, *own],
            env=os.environ | {"CUDA_VISIBLE_DEVICES": gpu},
            stdout=file,
            stderr=file,
        )
    return task, process, log


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    if arguments.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # s3prl enters torch.cuda.device(--device) wherever it sees a GPU
    # before s3prl does it, for a stream that is closed with its task; its warnings are about what it does not need here
    logging.basicConfig(level=logging.ERROR)
    try:
        tasks, suite = chosen_tasks(arguments.tasks), open_suite(arguments)
        if arguments.overwrite and not arguments.no_report:
            for task in tasks:
                forget(suite, task)
        unfinished = [task for task in tasks if finished(suite, task) is None]  # all are looked at before any work
        if unfinished:
            say(f"{suite.upstream}: {suite.described['parameters'] / 1e6:.2f} M parameters")
        if arguments.gpus:
            given = [text for text in (argv if argv is not None else sys.argv[1:]) if text != "--overwrite"]
            failures = run_on_gpus(suite, tasks, arguments.gpus.split(","), given)
        else:
            failures = run_here(suite, tasks, arguments.lr_search)
        if not arguments.no_report and (done_tasks(suite.output) or not failures):
            print(write_report(suite, arguments.beside))
            if arguments.submission:
                print(f"submission: {write_submission_of(suite, suite.output / 'submission')}")
    except UserError as error:
        say(f"superb.py: {error}")
        return 2
    for failure in failures:
        say(f"superb.py: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
