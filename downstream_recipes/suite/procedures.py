"""How each task comes to its scores: training, the choice of a checkpoint or layer, the evaluation."""

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from downstream_recipes.adaptation.s3prl_output import best_score, is_better, last_scores, read_checkpoint
from downstream_recipes.scores import error_rates as scoring
from downstream_recipes.suite.suite import Score, Suite, stage
from downstream_recipes.tasks.tasks import Task
from upstream.errors import UserError

SPLITS: Mapping[str, tuple[str, str]] = {"asr": ("dev-clean", "test-clean")}  # dev and test; everywhere else as named
BEST: Mapping[str, str] = {"asr": "dev-clean-best.ckpt", **dict.fromkeys(("sd", "se", "ss"), "best-states-dev.ckpt")}
UNITLESS = ("pesq", "stoi")
LEARNING_RATES = tuple(10.0**-power for power in range(1, 8))  # what SUPERB lets a user search
FOLDS = tuple(f"fold{number}" for number in range(1, 6))

Result = tuple[list[Score], str]  # and a note for the table


def run_task(suite: Suite, task: Task) -> Result:
    """Bring one task to its scores, from wherever it stands.

    Raises:
        UserError: wrong corpora, checkpoint or upstream.
        TaskFailed: s3prl did not finish.
    """
    procedure = PROCEDURES.get(task.code, run_trained)
    if not suite.lr_search or not task.trained:
        return procedure(suite, task, suite.output / task.code, {})
    folders = {rate: suite.output / task.code / f"lr-{rate:.0e}" for rate in LEARNING_RATES}
    judged = {rate: _judge(suite, task, folder, rate) for rate, folder in folders.items()}
    best = next(iter(judged))
    for rate, value in judged.items():
        best = rate if is_better(task.code, value, judged[best]) else best
    scores, note = procedure(suite, task, folders[best], _learning_rate(best))
    split = "the test trials, as SUPERB does" if task.code == "asv" else "dev"
    return scores, f"{note} Learning rate {best:.0e}, the best of {len(judged)} on {split}.".strip()


def _learning_rate(rate: float) -> dict[str, Any]:
    return {"optimizer": {"lr": rate}}


def _judge(suite: Suite, task: Task, folder: Path, rate: float) -> float:
    """What a learning rate is chosen by."""
    changes = _learning_rate(rate)
    if task.code == "asv":
        return run_verification(suite, task, folder, changes)[0][0].value
    if task.code == "er":  # one fold stands for the five
        return _dev_score(task, train(suite, task, folder / FOLDS[0], changes, FOLDS[0]))
    return _dev_score(task, train(suite, task, folder, changes))


def _dev_score(task: Task, trained: Mapping[str, Any]) -> float:
    if trained["dev"] is None:
        raise UserError(f"{task.code}: no evaluation on dev during training; total_steps is below eval_step")
    return trained["dev"]


def splits(task: Task) -> tuple[str, str]:
    """s3prl's names of the task's dev and test parts."""
    return SPLITS.get(task.code, ("dev", "test"))


def train(
    suite: Suite, task: Task, folder: Path, changes: Mapping[str, Any], variant: str | None = None
) -> dict[str, Any]:
    """Train once, continuing from the newest checkpoint of an interrupted training; {"dev": best score or None}.

    A training continued by s3prl sees its data in another order than one that was never interrupted. Without a
    checkpoint to continue from it starts again, and then comes to the same weights.
    """

    def work() -> dict[str, Any]:
        log = folder / "train.log"
        newest = newest_checkpoint(folder)
        if newest is not None:
            suite.run(["-m", "train", "-e", str(newest)], log)
        else:
            shutil.rmtree(folder, ignore_errors=True)
            suite.run(training_arguments(suite, task, folder, changes, variant), log)
        return {"dev": best_score(task.code, splits(task)[0], log.read_text())}

    return stage(folder / "train.json", work)


def training_arguments(
    suite: Suite, task: Task, folder: Path, changes: Mapping[str, Any], variant: str | None = None
) -> list[str]:
    recipe = suite.configure(task, folder, changes)
    arguments = ["-m", "train", *suite.upstream_arguments(), "-d", task.code, "-c", str(recipe), "-p", str(folder)]
    return [*arguments, "-v", variant] if variant else arguments


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest of s3prl's regular checkpoints that can be opened; those that cannot are removed."""
    for path in sorted(folder.glob("states-*.ckpt"), key=_step, reverse=True):
        if _opens(path):
            return path
        path.unlink()  # cut short by whatever ended the training
    return None


def _step(path: Path) -> int:
    return int(re.findall(r"\d+", path.stem)[-1])


def _opens(path: Path) -> bool:
    try:
        read_checkpoint(path)
    except Exception:  # truncated archives raise whatever the unpickler stumbles over
        return False
    return True


def best_checkpoint(task: Task, folder: Path) -> Path:
    """The best on dev; the newest when no evaluation beat s3prl's starting value, so that none was kept.

    Raises:
        UserError: the training kept none at all.
    """
    best = folder / BEST.get(task.code, "dev-best.ckpt")
    if best.exists() and _opens(best):
        return best
    newest = newest_checkpoint(folder)
    if newest is None:
        raise UserError(f"{folder}: the training kept no checkpoint; total_steps is below save_step and eval_step")
    return newest


def evaluate(suite: Suite, task: Task, folder: Path, checkpoint: Path, split: str, name: str = "test") -> dict:
    """Evaluate once; the task's metrics, and the command that gives them."""
    arguments = ["-m", "evaluate", "-t", split, "-e", str(checkpoint)]
    if name != "test":  # predictions of their own
        arguments += ["-o", f"args.expdir={folder / name}"]

    def work() -> dict[str, Any]:
        printed = suite.run(arguments, folder / f"{name}.log")
        return {"scores": last_scores(task.code, split, printed), "command": suite.command(arguments)}

    return stage(folder / f"{name}.json", work)


def run_trained(suite: Suite, task: Task, folder: Path, changes: Mapping[str, Any]) -> Result:
    """PR, ASR, KS, SID, IC, SF, SE, SS: train, take the best on dev, test it."""
    trained = train(suite, task, folder, changes)
    tested = evaluate(suite, task, folder, best_checkpoint(task, folder), splits(task)[1])
    seconds = trained["seconds"] + tested["seconds"]
    return [_score(task, metric, value, tested, seconds) for metric, value in tested["scores"].items()], ""


def _score(task: Task, metric: str, value: float, tested: Mapping[str, Any], seconds: float) -> Score:
    unit = "dB" if metric == "si_sdr" else "" if metric in UNITLESS else "%"
    return Score(task.code, metric, round(value, 4), unit, splits(task)[1], round(seconds, 1), tested["command"])


def run_emotion(suite: Suite, task: Task, folder: Path, changes: Mapping[str, Any]) -> Result:
    """ER: the mean over the five folds."""
    accuracies, commands, seconds = [], [], 0.0
    for fold in FOLDS:
        trained = train(suite, task, folder / fold, changes, fold)
        tested = evaluate(suite, task, folder / fold, best_checkpoint(task, folder / fold), "test")
        accuracies.append(tested["scores"]["acc"])
        commands.append(tested["command"])
        seconds += trained["seconds"] + tested["seconds"]
    note = "ER: folds " + ", ".join(f"{accuracy:.1f}" for accuracy in accuracies) + "."
    together = {"command": " && ".join(commands)}
    return [_score(task, "acc", sum(accuracies) / len(accuracies), together, seconds)], note


def run_verification(suite: Suite, task: Task, folder: Path, changes: Mapping[str, Any]) -> Result:
    """ASV: every kept checkpoint on the test trials, the best one reported (SUPERB's rule: there is no dev set).

    Raises:
        UserError: the training kept no checkpoint.
    """
    trained = train(suite, task, folder, changes)
    checkpoints = sorted(folder.glob("states-*.ckpt"), key=_step)
    if not checkpoints:
        raise UserError(f"{folder}: the training kept no checkpoint; total_steps is below save_step")
    tested = {path: evaluate(suite, task, folder, path, "test", f"test-{_step(path)}") for path in checkpoints}
    best = min(tested, key=lambda path: tested[path]["scores"]["eer"])
    seconds = trained["seconds"] + sum(result["seconds"] for result in tested.values())
    note = f"ASV: the best of {len(tested)} checkpoints on the test trials (step {_step(best)}), as SUPERB does."
    return [_score(task, "eer", tested[best]["scores"]["eer"], tested[best], seconds)], note


def run_diarization(suite: Suite, task: Task, folder: Path, changes: Mapping[str, Any]) -> Result:
    """SD: the lowest DER over the ways of turning the test predictions into segments (SUPERB's rule)."""
    trained = train(suite, task, folder, changes)
    tested = evaluate(suite, task, folder, best_checkpoint(task, folder), "test")
    rates = scoring.score_diarization(folder, Path(suite.corpora["libri2mix_diarization"]) / "test")
    median, threshold = min(rates, key=lambda key: rates[key])
    note = f"SD: the lowest of {len(rates)} settings on test (median {median}, threshold {threshold}), as SUPERB does."
    seconds = trained["seconds"] + tested["seconds"]
    return [_score(task, "der", rates[median, threshold], tested, seconds)], note


def run_query_by_example(suite: Suite, task: Task, folder: Path, changes: Mapping[str, Any]) -> Result:
    """QbE: dynamic time warping on every layer for dev, on the best of them for eval."""
    layers = range(suite.described["states"])
    found = {layer: _search(suite, task, folder / f"dev-{layer}", "dev", layer) for layer in layers}
    best = max(found, key=lambda layer: found[layer]["mtwv"])
    tested = _search(suite, task, folder / f"test-{best}", "test", best)
    seconds = tested["seconds"] + sum(result["seconds"] for result in found.values())
    score = Score("qbe", "mtwv", round(tested["mtwv"], 6), "fraction", "eval", round(seconds, 1), tested["command"])
    return [score], f"QbE: state {best} of {len(layers)}, the best on dev (MTWV {found[best]['mtwv']:.4f})."


def _search(suite: Suite, task: Task, folder: Path, split: str, layer: int) -> dict[str, Any]:
    def work() -> dict[str, Any]:
        recipe = suite.configure(task, folder)
        arguments = ["-m", "evaluate", "-t", split, *suite.upstream_arguments(), "-d", task.code]
        arguments += ["-l", str(layer), "-c", str(recipe), "-p", str(folder)]
        suite.run(arguments, folder / "search.log")
        value, threshold = scoring.score_search(folder, Path(suite.corpora["quesst14"]), split)
        return {"mtwv": value, "threshold": threshold, "command": suite.command(arguments)}

    return stage(folder / "search.json", work)


Procedure = Callable[[Suite, Task, Path, Mapping[str, Any]], Result]
PROCEDURES: Mapping[str, Procedure] = {
    "er": run_emotion,
    "asv": run_verification,
    "sd": run_diarization,
    "qbe": run_query_by_example,
}
