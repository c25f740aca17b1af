"""One upstream and its tasks: its settings, its runs of s3prl, and what is kept of finished tasks."""

import hashlib
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from distiller.common.files import remove, write_json
from distiller.common.provenance import parameter_count
from downstream_recipes.suite.features import FeatureCache, reused
from downstream_recipes.tasks.command_checks import check_upstream
from downstream_recipes.tasks.command_line import Arguments, command_line
from downstream_recipes.tasks.recipes import read_corpora, references, resolve, write_recipe
from downstream_recipes.tasks.runner import LOG, in_one_line, run_s3prl
from downstream_recipes.tasks.tasks import FOLDER, TASKS, Task
from upstream.errors import UserError

MINIATURE = FOLDER / "miniature.yaml"
MINIATURE_CACHE = 1.0  # GB
MODEL = ("upstream", "checkpoint", "model_config", "kind of corpora")  # common to all tasks of a row


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


@dataclass(frozen=True)
class Result:
    """What is kept of a task that is done: as in procedures.Outcome, paths relative to the suite's output."""

    scores: list[Score]
    note: str
    predictions: str
    checkpoint: str | None


@dataclass(frozen=True)
class Suite:
    """An upstream, the corpora, and where everything goes.

    Args:
        checkpoint, model_config: s3prl's -k and -g.
        corpora_file: as `recipes.read_corpora` reads it.
        lr_search: train with each learning rate that SUPERB allows, and choose one; otherwise the recipe's.
        feature_cache: GB of memory for reusing features; None: 1 on miniature corpora, otherwise 0.
    """

    upstream: str
    checkpoint: str | None
    model_config: str | None
    corpora_file: Path
    output: Path
    device: str
    lr_search: bool = False
    feature_cache: float | None = None

    @cached_property
    def corpora(self) -> dict[str, Any]:
        return read_corpora(self.corpora_file)

    @cached_property
    def features(self) -> FeatureCache | None:
        gigabytes = self.feature_cache if self.feature_cache is not None else MINIATURE_CACHE * self.miniature
        return FeatureCache(round(gigabytes * 1e9)) if gigabytes else None

    @property
    def miniature(self) -> bool:
        return bool(self.corpora.get("miniature"))

    def configure(self, task: Task, folder: Path, changes: Mapping[str, Any] | None = None) -> Path:
        """The task's recipe, ready for s3prl, in `folder`."""
        configuration = resolve(task.recipe, self.corpora, folder, self._settings(task), changes or {})
        return write_recipe(configuration, folder / f"{task.code}.yaml")

    def _settings(self, task: Task) -> dict[str, Any]:
        return yaml.safe_load(MINIATURE.read_text()).get(task.code) or {} if self.miniature else {}

    def identity(self, task: Task) -> dict[str, str]:
        """What a task's scores depend on, to check whether kept ones are this suite's."""
        recipe = repr((yaml.safe_load(task.recipe.read_text()), self._settings(task)))
        named = [name for kind, name in references(task.recipe) if kind == "corpora"]
        return {
            "upstream": self.upstream,
            "checkpoint": _fingerprint(self.checkpoint),
            "model_config": str(self.model_config),
            "kind of corpora": "miniature" if self.miniature else "real",
            "recipe": hashlib.sha256(recipe.encode()).hexdigest()[:16],
            "corpora": repr([(name, str(self.corpora[name])) for name in named if name in self.corpora]),
            "learning rate": "searched" if self.lr_search and task.trained else "of the recipe",
        }

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of s3prl that select the upstream."""
        return {"upstream": self.upstream, "upstream_ckpt": self.checkpoint, "upstream_model_config": self.model_config}

    @property
    def described(self) -> dict[str, Any]:
        """The number of states that the upstream exposes, and of its parameters; it is opened once per output.

        Raises:
            UserError: no such upstream, or a checkpoint that it cannot open.
        """
        identity = repr((self.upstream, _fingerprint(self.checkpoint), self.model_config))
        name = f"upstream-{hashlib.sha256(identity.encode()).hexdigest()[:8]}.json"
        return stage(self.output / name, self._describe)

    def _describe(self) -> dict[str, Any]:
        import torch

        check_upstream(self.upstream, self.checkpoint)
        from s3prl import hub

        try:
            model = getattr(hub, self.upstream)(ckpt=self.checkpoint, model_config=self.model_config, refresh=False)
            with torch.no_grad():
                states = model.eval()([torch.zeros(16_000)])["hidden_states"]
        except UserError:
            raise
        except Exception as error:  # an s3prl upstream can raise anything
            reason = in_one_line(error, self.output / LOG)
            raise UserError(f"-u {self.upstream} -k {self.checkpoint} cannot be opened: {reason}") from None
        return {"states": len(states) if isinstance(states, (list, tuple)) else 1, "parameters": parameter_count(model)}

    def run(self, arguments: Arguments, log: Path) -> str:
        """One run of s3prl in this process; its output is appended to `log`, and returned.

        Its progress bars go to the terminal, or into a file beside the log when there is none.

        Raises:
            UserError, Failed: as `runner.run_s3prl`.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with (
            log.open("a+", errors="backslashreplace") as file,
            log.with_suffix(".progress").open("a", errors="backslashreplace") as bars,
        ):
            start = file.tell()
            stderr = sys.stderr if sys.stderr.isatty() else bars
            with redirect_stdout(file), redirect_stderr(stderr), reused(self.features):
                run_s3prl({**arguments, "device": self.device}, log)
            file.flush()
            file.seek(start)
            return file.read()

    def command(self, arguments: Arguments) -> str:
        """The same run as a command line."""
        return shlex.join(["python", "downstream_recipes/run_downstream.py", *command_line(arguments)])


def stage(path: Path, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of `work`, stored at `path` with the seconds it took; if `path` exists, `work` is not called."""
    if not path.exists():
        start = time.monotonic()
        result = work()
        write_json(path, {**result, "seconds": round(time.monotonic() - start, 1)})
    return json.loads(path.read_text())


def check_kept(suite: Suite, tasks: Sequence[Task], overwrite: bool) -> None:
    """Check that the output belongs to this suite: `tasks` in all respects, the others to the same model.

    A task without a checkpoint or a finished stage starts again anyway: one that failed because of a mistyped path
    only needs the right path.

    Args:
        overwrite: `tasks` are about to start again, whatever is kept of them.

    Raises:
        UserError: it is not; names what differs, and every task that does not fit.
    """
    differences = dict[Task, str]()
    for task in TASKS.values():
        state = _state(suite.output, task)
        if state and (state["scores"] is not None or _has_results(suite.output / task.code)):
            before, now = state["identity"], suite.identity(task)
            keys = [key for key in (now if task in tasks else MODEL) if before.get(key, now[key]) != now[key]]
            if keys:
                differences[task] = f"{keys[0]} {before[keys[0]]}, not {now[keys[0]]}"
    for task in differences:
        if not (overwrite and task in tasks):
            raise UserError(
                f"{suite.output}: {task.code} was made with {differences[task]}; choose another --output, or add "
                f"--tasks {','.join(other.code for other in differences)} --overwrite to repeat these tasks"
            )


def _has_results(folder: Path) -> bool:
    """Whether a task's folder has anything to continue from."""
    return any(path.suffix in (".ckpt", ".json") for path in folder.rglob("*"))


def keep(suite: Suite, task: Task, result: Result | None) -> None:
    """Record that a task is done; or, without a result, which suite its folder belongs to before anything is in it."""
    content = asdict(result) if result else {"scores": None}
    write_json(suite.output / f"{task.code}.json", {"identity": suite.identity(task), **content})


def kept_result(output: Path, task: Task) -> Result | None:
    """The result of a task; None if it is not done."""
    state = _state(output, task)
    if not state or state["scores"] is None:
        return None
    scores = [Score(**score) for score in state["scores"]]
    return Result(scores, state["note"], state.get("predictions", task.code), state.get("checkpoint"))


def forget(suite: Suite, task: Task) -> None:
    """Remove all files of a task."""
    for path in (suite.output / task.code, suite.output / f"{task.code}.json"):
        remove(path)


def _state(output: Path, task: Task) -> dict[str, Any]:
    path = output / f"{task.code}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def say(text: str) -> None:
    """Print a line about progress."""
    print(text, file=sys.stderr, flush=True)


def _fingerprint(checkpoint: str | None) -> str:
    """A checkpoint's path, and a digest of its content if it is a local file."""
    if checkpoint is None:
        return "published"
    path = Path(checkpoint)
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        return checkpoint
    with file.open("rb") as stream:
        return f"{path.resolve()} {hashlib.file_digest(stream, 'sha256').hexdigest()[:16]}"
