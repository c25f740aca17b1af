"""All tasks of a suite, here or on several GPUs, and the table at the end."""

import time
from collections.abc import Sequence
from pathlib import Path

from distiller.common.command import Failed
from distiller.common.files import disk_error, lock_folder
from downstream_recipes.suite.gpus import run_on_gpus
from downstream_recipes.suite.procedures import run_task
from downstream_recipes.suite.report import done_tasks, read_rows, write_report
from downstream_recipes.suite.submission import write_submission
from downstream_recipes.suite.suite import Suite, check_kept, forget, keep, kept_result, say
from downstream_recipes.tasks.tasks import Task
from upstream.errors import UserError


def run_suite(
    suite: Suite, tasks: Sequence[Task], gpus: Sequence[str], overwrite: bool, beside: Sequence[Path], submission: bool
) -> None:
    """Run the tasks that are not done, then write and print the table.

    Args:
        gpus: run tasks on these in parallel; none: one after the other in this process.
        overwrite: start the tasks again.
        beside: outputs of other suites, for further rows of the table.
        submission: write the leaderboard's files too.

    Raises:
        UserError: anything wrong that can be found before the first task.
        Failed: tasks that failed, one line for each.
    """
    read_rows(beside, suite.miniature)  # find mistakes in them now, not when the tasks are done
    with lock_folder(suite.output):
        check_kept(suite, tasks, overwrite)
        todo = [task for task in tasks if overwrite or kept_result(suite.output, task) is None]
        if todo:
            say(f"{suite.upstream}: {suite.described['parameters'] / 1e6:.2f} M parameters")
        for task in tasks if overwrite else ():  # only once all of the above is right
            forget(suite, task)
        failures = run_on_gpus(suite, todo, gpus) if gpus else run_here(suite, tasks)
        done = done_tasks(suite.output)
        if done or not failures:
            print(write_report(suite, beside))
            if submission:
                predictions = {task: suite.output / result.predictions for task, result in done.items()}
                print(f"submission: {write_submission(predictions, suite.output / 'submission')}")
    if failures:
        raise Failed(*failures)


def run_here(suite: Suite, tasks: Sequence[Task]) -> list[str]:
    """The tasks one after the other in this process; a line for each that failed. Tasks that are done are skipped."""
    failures = []
    for number, task in enumerate(tasks, start=1):
        label = f"[{number}/{len(tasks)}] {task.code}"
        if kept_result(suite.output, task) is not None:
            say(f"{label}: done before")
            continue
        say(f"{label}: running, output in {suite.output / task.code}")
        start = time.monotonic()
        try:
            with lock_folder(suite.output, f".{task.code}.lock"):  # a killed --gpus may have left a process running it
                keep(suite, task, None)
                result = run_task(suite, task)
                keep(suite, task, result)
        except (UserError, Failed, OSError) as error:
            if isinstance(error, OSError):
                error = disk_error(Path(error.filename or suite.output), error, "used")
            failures.append(f"{task.code}: {error}")
            say(f"[{number}/{len(tasks)}] {failures[-1]}")
            continue
        values = ", ".join(f"{score.metric} {score.value:.4g}{'%' * (score.unit == '%')}" for score in result.scores)
        say(f"{label}: {values} ({time.monotonic() - start:.0f} s)")
    return failures
