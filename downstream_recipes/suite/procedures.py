"""How each task is scored: training, choosing a checkpoint or layer, evaluation."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from downstream_recipes.adaptation.checkpoints import is_complete, regular_checkpoints, step_of
from downstream_recipes.scores.error_rates import score_diarization, score_search
from downstream_recipes.suite.suite import Result, Score, Suite, stage
from downstream_recipes.tasks.command_checks import check_packages
from downstream_recipes.tasks.tasks import Procedure, Task
from upstream.errors import UserError

LEARNING_RATES = tuple(10.0**-power for power in range(1, 8))  # the search that SUPERB allows


class Outcome(NamedTuple):
    """The result of a procedure.

    Args:
        values: one for each of the task's metrics.
        command: prints them.
        stages: what was done, each with its seconds.
        note: for the table.
        predictions: the folder that the evaluation wrote to; for ER the folds' parent.
        checkpoint: the evaluated one, for ER the first fold's; None: nothing is trained.
    """

    values: list[float]
    command: str
    stages: list[dict[str, Any]]
    note: str
    predictions: Path
    checkpoint: Path | None


def run_task(suite: Suite, task: Task) -> Result:
    """Run a task to its scores, continuing from what is kept of it.

    Raises:
        UserError: wrong corpora, checkpoint or upstream, or a package is missing.
        Failed: s3prl raised something else.
    """
    check_packages(task.downstream)
    folder, changes, note = suite.output / task.code, {}, ""
    if suite.lr_search and task.trained:
        folders = {rate: folder / f"lr-{rate:.0e}" for rate in LEARNING_RATES}
        judged = {rate: _judge(suite, task, folders[rate], rate) for rate in LEARNING_RATES}
        best = task.judged_by.best(judged, key=judged.__getitem__)
        folder, changes = folders[best], {"optimizer": {"lr": best}}
        where = "the test trials, as SUPERB does" if task.procedure == "best on test" else "dev"
        note = f"Learning rate {best:.0e}, the best of {len(judged)} on {where}."
    outcome = PROCEDURES[task.procedure](suite, task, folder, changes)
    seconds, split = round(sum(stage["seconds"] for stage in outcome.stages), 1), task.test_split
    scores = [
        Score(task.code, metric.name, round(value, metric.digits + 2), metric.unit, split, seconds, outcome.command)
        for metric, value in zip(task.metrics, outcome.values, strict=True)
    ]
    checkpoint = outcome.checkpoint and str(outcome.checkpoint.relative_to(suite.output))
    predictions = str(outcome.predictions.relative_to(suite.output))
    return Result(scores, f"{outcome.note} {note}".strip(), predictions, checkpoint)


def _judge(suite: Suite, task: Task, folder: Path, rate: float) -> float:
    """The score for choosing a learning rate: on dev (of the first fold only), or for ASV SUPERB's own score."""
    changes = {"optimizer": {"lr": rate}}
    if task.procedure == "best on test":
        return best_on_test(suite, task, folder, changes).values[0]
    dev = train(suite, task, _folders(task, folder)[0], changes)["dev"]
    if dev is None:
        raise UserError(f"{task.code} was never evaluated on dev: runner.total_steps must reach runner.eval_step")
    return dev


def _folders(task: Task, folder: Path) -> list[Path]:
    """The training folders: for ER one below `folder` for each fold, named after it."""
    return [folder / fold for fold in task.folds] or [folder]


def train(suite: Suite, task: Task, folder: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Train once, continuing from the newest checkpoint of an interrupted training; {"dev": best score or None}.

    Continued training gets its data in a different order than uninterrupted training. Without a checkpoint to continue
    from, training starts again and leads to the same weights.
    """

    def work() -> dict[str, Any]:
        log = folder / "train.log"
        arguments: dict[str, Any] = {"mode": "train", "past_exp": newest_checkpoint(folder)}
        if arguments["past_exp"] is None:
            shutil.rmtree(folder, ignore_errors=True)
            arguments |= {**suite.arguments, "downstream": task.code, "config": suite.configure(task, folder, changes)}
            arguments |= {"expdir": folder, "downstream_variant": folder.name if folder.name in task.folds else None}
        suite.run(arguments, log)
        return {"dev": task.best_on_dev(log.read_text())}

    return stage(folder / "train.json", work)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest of s3prl's regular checkpoints that is complete; truncated ones are removed."""
    for path in reversed(regular_checkpoints(folder)):
        if is_complete(path):
            return path
        path.unlink()
    return None


def best_checkpoint(task: Task, folder: Path) -> Path:
    """The best checkpoint on dev; the newest if no evaluation beat s3prl's initial value, so that no best was kept.

    Raises:
        UserError: training kept no checkpoint.
    """
    best = folder / task.best
    if best.exists() and is_complete(best):
        return best
    newest = newest_checkpoint(folder)
    if newest is None:
        raise UserError(f"{folder} has no checkpoint: runner.total_steps must reach runner.save_step or eval_step")
    return newest


def evaluate(suite: Suite, task: Task, folder: Path, checkpoint: Path, name: str = "test") -> dict[str, Any]:
    """Evaluate once on test: {"scores": what s3prl prints, by metric, "command": prints it}.

    Args:
        name: of the result; if it is not "test", predictions go into a folder of that name.
    """
    override = None if name == "test" else f"args.expdir={folder / name}"
    arguments = {"mode": "evaluate", "evaluate_split": task.test_split, "past_exp": checkpoint, "override": override}

    def work() -> dict[str, Any]:
        printed = task.printed_scores(task.test_split, suite.run(arguments, folder / f"{name}.log"))
        scores = {metric.name: value for metric, value in printed.items()}
        return {"scores": scores, "command": suite.command(arguments)}

    return stage(folder / f"{name}.json", work)


def best_on_dev(suite: Suite, task: Task, folder: Path, changes: Mapping[str, Any]) -> Outcome:
    """Train, take the best checkpoint on dev, test it; for ER, the mean over the five folds."""
    trained = [train(suite, task, path, changes) for path in _folders(task, folder)]
    checkpoints = [best_checkpoint(task, path) for path in _folders(task, folder)]
    tested = [evaluate(suite, task, path.parent, path) for path in checkpoints]
    scores = [list(result["scores"].values()) for result in tested]  # (fold, metric)
    values = [fmean(of_metric) for of_metric in zip(*scores, strict=True)]
    note = f"{task.title}: folds {', '.join(f'{value:.1f}' for value, *_ in scores)}." if task.folds else ""
    command = " && ".join(result["command"] for result in tested)
    return Outcome(values, command, [*trained, *tested], note, folder, checkpoints[0])


def best_on_test(suite: Suite, task: Task, folder: Path, changes: Mapping[str, Any]) -> Outcome:
    """ASV: every kept checkpoint on the test trials, the best one reported (SUPERB's rule: there is no dev set).

    Raises:
        UserError: training kept no checkpoint.
    """
    trained, name = train(suite, task, folder, changes), task.metrics[0].name
    checkpoints = {step_of(path): path for path in regular_checkpoints(folder)}
    tested = {step: evaluate(suite, task, folder, path, f"test-{step}") for step, path in checkpoints.items()}
    if not tested:
        raise UserError(f"{folder} has no checkpoint: runner.total_steps must reach runner.save_step")
    best = min(tested, key=lambda step: tested[step]["scores"][name])
    note = f"{task.title}: the best of {len(tested)} checkpoints on the test trials (step {best}), as SUPERB does."
    value, command, stages = tested[best]["scores"][name], tested[best]["command"], [trained, *tested.values()]
    return Outcome([value], command, stages, note, folder / f"test-{best}", checkpoints[best])


def lowest_der(suite: Suite, task: Task, folder: Path, changes: Mapping[str, Any]) -> Outcome:
    """SD: the lowest DER over the ways of turning the test predictions into segments (SUPERB's rule)."""
    outcome = best_on_dev(suite, task, folder, changes)
    rate, median, threshold = score_diarization(folder, Path(suite.corpora["libri2mix_diarization"]) / "test")
    note = f"SD: the lowest of 10 settings on test (median {median}, threshold {threshold}), as SUPERB does."
    return outcome._replace(values=[rate], note=note)


def search(suite: Suite, task: Task, folder: Path, changes: Mapping[str, Any]) -> Outcome:
    """QbE: dynamic time warping on every layer for dev, on the best of them for eval."""
    layers = range(suite.described["states"])
    dev = {layer: _search_layer(suite, task, folder / f"dev-{layer}", "dev", layer) for layer in layers}
    best = max(dev, key=lambda layer: dev[layer]["mtwv"])
    tested = _search_layer(suite, task, folder / f"test-{best}", "test", best)
    note = f"QbE: state {best} of {len(layers)}, the best on dev (MTWV {dev[best]['mtwv']:.4f})."
    return Outcome([tested["mtwv"]], tested["command"], [*dev.values(), tested], note, folder / f"test-{best}", None)


def _search_layer(suite: Suite, task: Task, folder: Path, split: str, layer: int) -> dict[str, Any]:
    def work() -> dict[str, Any]:
        arguments = {
            **{"mode": "evaluate", "evaluate_split": split, **suite.arguments, "downstream": task.code},
            **{"upstream_layer_selection": layer, "config": suite.configure(task, folder), "expdir": folder},
        }
        suite.run(arguments, folder / "search.log")
        value, threshold = score_search(folder, Path(suite.corpora["quesst14"]), split)
        return {"mtwv": value, "threshold": threshold, "command": suite.command(arguments)}

    return stage(folder / "search.json", work)


PROCEDURES: Mapping[Procedure, Callable[[Suite, Task, Path, Mapping[str, Any]], Outcome]] = {
    "best on dev": best_on_dev,
    "best on test": best_on_test,
    "diarization": lowest_der,
    "search": search,
}
