"""One upstream through the tasks: stages that are kept when they are done, and what every task's procedure needs."""

import contextlib
import gc
import hashlib
import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

import yaml

from distiller.common.files import write_text
from downstream_recipes import run_downstream
from downstream_recipes.suite.features import FeatureCache, reused
from downstream_recipes.tasks.command_checks import check_upstream
from downstream_recipes.tasks.recipes import resolve
from downstream_recipes.tasks.tasks import TASKS, Task
from upstream.errors import UserError

MINIATURE = Path(__file__).parents[1] / "miniature.yaml"
MINIATURE_CACHE = 1.0  # GB
MODEL = ("upstream", "checkpoint", "model_config", "kind of corpora")  # what all tasks of a row have in common


@dataclass(frozen=True)
class Score:
    """A row of scores.csv; percentages in percent, MTWV a fraction."""

    task: str
    metric: str
    value: float
    unit: str
    split: str
    seconds: float
    command: str


class TaskFailed(Exception):
    """s3prl did not finish a run; the sentence says where its output is."""


@dataclass(frozen=True)
class Suite:
    """An upstream, the corpora, and where everything goes.

    Args:
        checkpoint, model_config: s3prl's -k and -g.
        corpora: as `recipes.read_corpora` returns them.
        lr_search: train with each learning rate that SUPERB allows, and choose; else with the recipe's.
        feature_cache: GB of memory for features that are heard again; None: 1 on miniature corpora, else 0, none.
    """

    upstream: str
    checkpoint: str | None
    model_config: str | None
    corpora: Mapping[str, Any]
    output: Path
    device: str
    lr_search: bool = False
    feature_cache: float | None = None

    @cached_property
    def features(self) -> FeatureCache | None:
        gigabytes = self.feature_cache if self.feature_cache is not None else MINIATURE_CACHE * self.miniature
        return FeatureCache(round(gigabytes * 1e9)) if gigabytes else None

    @property
    def miniature(self) -> bool:
        return bool(self.corpora.get("miniature"))

    def configure(self, task: Task, folder: Path, changes: Mapping[str, Any] | None = None) -> Path:
        """The task's recipe, ready for s3prl, in `folder`."""
        changes = dict(changes or {})
        configuration = resolve(task.recipe, self.corpora, folder, _merged(self._settings(task), changes))
        return write_text(folder / f"{task.code}.yaml", yaml.safe_dump(configuration, sort_keys=False))

    def _settings(self, task: Task) -> dict[str, Any]:
        return yaml.safe_load(MINIATURE.read_text()).get(task.code) or {} if self.miniature else {}

    def identity(self, task: Task) -> dict[str, str]:
        """What a finished task's scores depend on, for telling whether they are this suite's."""
        recipe = task.recipe.read_bytes() + repr(self._settings(task)).encode()
        corpora = {key: str(value) for key, value in self.corpora.items() if f"corpora.{key}" in recipe.decode()}
        return {
            "upstream": self.upstream,
            "checkpoint": _fingerprint(self.checkpoint),
            "model_config": str(self.model_config),
            "kind of corpora": "miniature" if self.miniature else "real",
            "recipe": hashlib.sha256(recipe).hexdigest()[:16],
            "corpora": repr(sorted(corpora.items())),
            "learning rate": "searched" if self.lr_search and task.trained else "of the recipe",
        }

    def upstream_arguments(self) -> list[str]:
        given = {"-u": self.upstream, "-k": self.checkpoint, "-g": self.model_config}
        return [text for flag, value in given.items() if value is not None for text in (flag, value)]

    @property
    def described(self) -> dict[str, Any]:
        """How many states the upstream exposes, and its parameters; opened once per output.

        Raises:
            UserError: no such upstream, or no checkpoint that it can open.
        """
        which = repr((self.upstream, _fingerprint(self.checkpoint), self.model_config))
        name = f"upstream-{hashlib.sha256(which.encode()).hexdigest()[:8]}.json"
        return stage(self.output / name, self._describe)

    def _describe(self) -> dict[str, Any]:
        import torch

        from downstream_recipes.adaptation import compat

        compat.install()
        from s3prl import hub

        check_upstream(self.upstream, self.checkpoint)
        try:
            model = getattr(hub, self.upstream)(
                ckpt=self.checkpoint, model_config=self.model_config, refresh=False
            ).eval()
            with torch.no_grad():
                states = model([torch.zeros(16_000)])["hidden_states"]
        except UserError:
            raise
        except Exception as error:  # whatever an upstream of s3prl's raises
            told = run_downstream.in_one_line(error, self.output / run_downstream.LOG)
            raise UserError(f"-u {self.upstream}, -k {self.checkpoint}: cannot be opened: {told}") from None
        count = len(states) if isinstance(states, (list, tuple)) else 1
        return {"states": count, "parameters": sum(parameter.numel() for parameter in model.parameters())}

    def run(self, arguments: Sequence[str], log: Path) -> str:
        """One run of s3prl in this process; what it prints is appended to `log`, and returned.

        Its progress bars go to the terminal, or beside the log when there is none.

        Raises:
            UserError: as `run_downstream.run`.
            TaskFailed: anything else that s3prl raised.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        arguments = [*arguments, "--device", self.device]
        with log.open("a+") as file:
            start = file.tell()
            try:
                with contextlib.redirect_stdout(file), _progress(log), reused(self.features):
                    run_downstream.run(arguments)
            except UserError:
                raise
            except Exception as error:  # whatever a task of s3prl's raises
                file.flush()
                raise TaskFailed(run_downstream.in_one_line(error, log)) from None
            finally:
                gc.collect()  # the model and its workers
            file.flush()
            file.seek(start)
            return file.read()

    def command(self, arguments: Sequence[str]) -> str:
        """The same run as a command line."""
        return shlex.join(["python", "downstream_recipes/run_downstream.py", *arguments])


@contextlib.contextmanager
def _progress(log: Path) -> Iterator[None]:
    if sys.stderr.isatty():
        yield
        return
    with log.with_suffix(".progress").open("a") as file, contextlib.redirect_stderr(file):
        yield


def stage(path: Path, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` returns, kept at `path` with the seconds it took; `work` is not called again once it is there."""
    if not path.exists():
        start = time.monotonic()
        result = work()
        write_text(path, json.dumps({**result, "seconds": round(time.monotonic() - start, 1)}, indent=1) + "\n")
    return json.loads(path.read_text())


def check_kept(suite: Suite, tasks: Sequence[Task], overwrite: bool) -> None:
    """What is there, finished or not, is this suite's: `tasks` in all respects, the others of the same model.

    A task without a checkpoint or a stage that is done begins again anyway, whose ever it was: one that failed for a
    mistyped path needs no more than the right one.

    Args:
        overwrite: `tasks` are about to be started afresh, whatever there is of them.

    Raises:
        UserError: it is not; names what differs, and every task that does not fit.
    """
    differences = dict[Task, str]()
    for task in TASKS.values():
        kept = read_state(suite.output, task)
        if kept and (kept["scores"] is not None or _has_results(suite.output / task.code)):
            before, now = kept["identity"], suite.identity(task)
            keys = [key for key in (now if task in tasks else MODEL) if before.get(key, now[key]) != now[key]]
            if keys:
                differences[task] = f"{keys[0]} {before[keys[0]]}, not {now[keys[0]]}"
    for task in differences:
        if not (overwrite and task in tasks):
            raise UserError(
                f"{suite.output}: {task.code} was made with {differences[task]}; give another --output, or "
                f"--tasks {','.join(other.code for other in differences)} --overwrite to start afresh what does not fit"
            )


def _has_results(folder: Path) -> bool:
    """Whether anything in a task's folder would be gone on with."""
    return any(path.suffix in (".ckpt", ".json") for path in folder.rglob("*"))


def finished(suite: Suite, task: Task) -> list[Score] | None:
    """A task's scores when it is done, None when there is something to do."""
    return read_state(suite.output, task).get("scores")


def keep(suite: Suite, task: Task, scores: Sequence[Score] | None, note: str = "") -> None:
    """Make a task done; or, without scores, note whose its folder is before anything is in it."""
    rows = None if scores is None else [asdict(score) for score in scores]
    content = {"identity": suite.identity(task), "scores": rows, "note": note}
    write_text(_state(suite.output, task), json.dumps(content, indent=1) + "\n")


def read_state(output: Path, task: Task) -> dict[str, Any]:
    """What `keep` wrote, scores as Score; empty when the task was never begun."""
    path = _state(output, task)
    if not path.exists():
        return {}
    kept = json.loads(path.read_text())
    scores = None if kept["scores"] is None else [Score(**score) for score in kept["scores"]]
    return {**kept, "scores": scores}


def forget(suite: Suite, task: Task) -> None:
    """Remove all there is of a task."""
    shutil.rmtree(suite.output / task.code, ignore_errors=True)
    _state(suite.output, task).unlink(missing_ok=True)


def _state(output: Path, task: Task) -> Path:
    return output / f"{task.code}.json"


def say(text: str, file: TextIO | None = None) -> None:
    print(text, file=file or sys.stderr, flush=True)


def _fingerprint(checkpoint: str | None) -> str:
    """A checkpoint's path, and its content where that is a file of the machine's."""
    if checkpoint is None:
        return "published"
    path = Path(checkpoint)
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        return checkpoint
    with file.open("rb") as stream:
        return f"{path.resolve()} {hashlib.file_digest(stream, 'sha256').hexdigest()[:16]}"


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """`second` over `first`, key by key."""
    both = {**first, **second}
    for key in set(first) & set(second):
        if isinstance(first[key], Mapping) and isinstance(second[key], Mapping):
            both[key] = _merged(first[key], second[key])
    return both
