"""What s3prl should run: a new experiment, or one that is evaluated or continued.

For the latter, s3prl takes nearly everything from the checkpoint and ignores the command line. Here the command line is
applied through -o, which overrides the checkpoint; arguments that the trained weights depend on must be unchanged.
"""

import re
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from distiller.common.files import check_writable
from distiller.common.values import flatten
from downstream_recipes.adaptation.checkpoints import regular_checkpoints
from downstream_recipes.tasks.command_checks import read_experiment
from downstream_recipes.tasks.command_line import Arguments, flag
from downstream_recipes.tasks.recipes import read_yaml, references, resolve
from downstream_recipes.tasks.tasks import TASKS, Task, find_task
from upstream.errors import UserError, no_such, require

RESULTS = Path("result") / "downstream"  # s3prl's
TYPED = ("mode", "evaluate_split", "override", "backend", "local_rank", "past_exp", "device")  # s3prl uses these
FIXED = (  # with the task, the arguments that the trained weights depend on
    *("upstream", "upstream_trainable", "upstream_feature_selection", "upstream_layer_selection"),
    *("upstream_feature_normalize", "downstream_variant", "hub"),
)

Corpora = Callable[[], Mapping[str, Any]]  # reads the corpora file


@dataclass(frozen=True)
class Plan:
    """A run of s3prl.

    Args:
        arguments: of its command line.
        configuration: the recipe; to be written to `arguments["config"]` when the experiment is `new`.
        upstream, checkpoint: to be checked; None: nothing to check.
    """

    arguments: dict[str, Any]
    configuration: dict[str, Any]
    folder: Path
    downstream: str
    upstream: str | None
    checkpoint: str | None
    new: bool


def planned(arguments: Arguments, corpora: Corpora) -> Plan:
    """
    Args:
        arguments: of run_downstream.py by name; None: left out.
        corpora: called if the recipe refers to a corpus.

    Raises:
        UserError: an argument is missing or wrong, or as `recipes.resolve`; nothing has been written.
    """
    past = arguments["past_exp"]
    if past:
        if arguments["auto_resume"]:
            raise UserError(f"-a has no effect with -e {past}: it looks for a checkpoint in the folder of -p or -n")
        expdir = arguments["expdir"] or (arguments["expname"] and RESULTS / arguments["expname"])
        return _kept({**arguments, "expdir": expdir}, Path(past), corpora)
    for needed in ("upstream", "downstream"):
        if arguments[needed] is None:
            raise UserError(f"{flag(needed)} is missing: which {needed}?")
    name = arguments["downstream"]
    task = find_task(name) if arguments["config"] is None or name in TASKS else None
    name = task.code if task else name
    folder = Path(arguments["expdir"] or RESULTS / (arguments["expname"] or f"{arguments['upstream']}_{name}"))
    check_writable(folder)
    if arguments["auto_resume"] and regular_checkpoints(folder):
        return _kept({**arguments, "expdir": folder}, folder, corpora)
    file = arguments["config"] or (task and task.recipe)
    if file is None:
        raise no_such(f"-d {name}", name, [*TASKS, *(known.downstream for known in TASKS.values())])
    configuration = resolve(Path(file), corpora() if references(Path(file)) else {}, folder)
    downstream = task.downstream if task else name
    filled_in = {
        "mode": arguments["mode"] or ("train" if task is None or task.trained else "evaluate"),
        **{"downstream": downstream, "config": folder / f"{name}.yaml", "expdir": folder, "corpora": None},
    }
    upstream, checkpoint = arguments["upstream"], arguments["upstream_ckpt"]
    return Plan({**arguments, **filled_in}, configuration, folder, downstream, upstream, checkpoint, new=True)


def _kept(arguments: Arguments, experiment: Path, corpora: Corpora) -> Plan:
    """The plan for a checkpoint, or for the newest one in a folder."""
    states = read_experiment(experiment)
    stored, folder = states["Args"], experiment if experiment.is_dir() else experiment.parent
    if arguments["init_ckpt"]:
        raise UserError(f"-i {arguments['init_ckpt']} would have no effect: the checkpoint of {experiment} is loaded")
    if arguments["expdir"]:
        check_writable(Path(arguments["expdir"]))
    file = folder / Path(str(getattr(stored, "config", ""))).name  # CODE.yaml for our recipes
    task, downstream = TASKS.get(file.stem), getattr(stored, "downstream", "")
    fixed = {name: [getattr(stored, name, None)] for name in FIXED}
    fixed["downstream"] = [task.code, downstream] if task else [downstream]
    for name, allowed in fixed.items():
        typed, kept = arguments[name], [str(value) for value in allowed if value is not None and value is not False]
        said = f"{' or '.join(kept) or 'left out'}, as when {experiment} was made"
        require(not typed or str(typed) in kept, flag(name), typed, said)
    others = (*TYPED, *fixed, "config", "corpora", "auto_resume")
    changes = {f"args.{name}": value for name, value in arguments.items() if value and name not in others}
    if arguments["config"] or arguments["corpora"]:
        before = flatten(yaml.safe_load(file.read_text()) if file.is_file() else states["Config"])
        changes |= _changes_of_recipe(before, arguments["config"], task, corpora, experiment)
    typed = arguments["override"]
    options = [f"{key}={_literal(key, value, stored)}" for key, value in changes.items()]
    options += [typed] if typed and typed.lower() != "none" else []
    given = {name: arguments[name] for name in TYPED}
    given |= {"mode": arguments["mode"] or "train", "past_exp": experiment, "override": ",,".join(options) or None}
    checkpoint = arguments["upstream_ckpt"]
    upstream = getattr(stored, "upstream", None) if checkpoint else None
    return Plan(given, states["Config"], folder, downstream, upstream, checkpoint, new=False)


def _changes_of_recipe(
    before: Mapping[str, Any], chosen: str | None, task: Task | None, corpora: Corpora, experiment: Path
) -> dict[str, Any]:
    """The keys, for -o, whose values differ with the recipe of -c and the corpora of --corpora.

    Args:
        chosen: -c; without it, only corpus-dependent values can differ from our recipe of the task.
    """
    if chosen is None and task is None:
        raise UserError(f"--corpora needs -c RECIPE too: {experiment} was not made with a recipe of ours")
    recipe = Path(chosen or task.recipe)  # type: ignore[union-attr] - a task, then
    folder = experiment if experiment.is_dir() else experiment.parent
    now = flatten(resolve(recipe, corpora() if references(recipe) else {}, folder))
    if chosen is None:
        moving = [
            key for key, value in flatten(read_yaml(recipe)).items() if re.search(r"\$\{(corpora|prep)", str(value))
        ]
        now = {key: now[key] for key in moving}
    for key in before if chosen else ():
        if key not in now:
            raise UserError(f"{recipe} has no {key}, but {experiment} was made with {key}: {before[key]!r:.100}")
    return {f"config.{key}": value for key, value in now.items() if key not in before or before[key] != value}


def _literal(key: str, value: object, stored: Namespace) -> str:
    """A value as s3prl's -o evaluates it, without `=` and `,,`, at which it first splits the text."""
    if type(getattr(stored, key.removeprefix("args."), None)) is int:  # --seed
        return str(value)
    value = str(value) if isinstance(value, Path) else value
    return repr(value).replace("=", r"\x3d").replace(",,", r",\x2c")
