"""From a recipe and the paths of corpora to a configuration for s3prl.

Recipes refer to what they need as `${corpora.KEY}` (corpora.yaml), `${prepared.NAME}` and `${vocabulary.NAME}` (made on
first use, preparation.py), `${workers}` of a data loader (0: none) and `${processes}` (at least 1).
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distiller.common.files import disk_errors, expanded, write_text
from distiller.common.values import flatten
from downstream_recipes.tasks import preparation
from downstream_recipes.tasks.corpus_layouts import CORPORA, faults
from downstream_recipes.tasks.tasks import FOLDER
from upstream.errors import UserError, no_such, require

REFERENCE = re.compile(r"\$\{(corpora|prepared|vocabulary)\.(\w+)\}")
SECTIONS = ("runner", "downstream_expert")  # of every recipe
MAX_WORKERS = 4
# name -> the corpus it is made from, and how
PREPARED: Mapping[str, tuple[str, Callable[[Path], Path]]] = {
    "asr_lengths": ("librispeech", preparation.asr_lengths),
    "emotion_folds": ("iemocap", preparation.emotion_folds),
}


def read_corpora(file: Path) -> dict[str, Any]:
    """A corpora file: key -> absolute path or list of paths (relative ones are relative to the file); settings as is.

    Raises:
        UserError: the file cannot be read, has an unknown key, or a value that is not allowed.
    """
    values = read_yaml(file)
    known = [*CORPORA, *PREPARED, "workers", "miniature"]
    for key, value in values.items():
        name = f"{file}: {key}"
        if key not in known:
            raise no_such(name, key, known)
        if value is None:
            continue
        if key == "workers":
            require(type(value) is int and value >= 0, name, value, "a number of processes, 0 or more")
        elif key == "miniature":
            require(isinstance(value, bool), name, value, "true or false")
        else:
            values[key] = _absolute(name, value, key in CORPORA and CORPORA[key].several, file.resolve().parent)
    return values


def _absolute(name: str, value: Any, several: bool, folder: Path) -> Any:
    """Paths relative to `folder` made absolute; a single path becomes a list if several are allowed."""
    paths = value if several and isinstance(value, list) else [value]
    are_paths = bool(paths) and all(isinstance(path, str) and path for path in paths)
    require(are_paths, name, value, "a path or a list of paths" if several else "a path")
    absolute = [str((folder / expanded(path)).resolve()) for path in paths]
    return absolute if several else absolute[0]


def read_yaml(file: Path) -> dict[str, Any]:
    """A YAML mapping; ${...} is left unchanged.

    Raises:
        UserError: the file cannot be read, or is something else.
    """
    with disk_errors(file, "read"):
        try:
            values = OmegaConf.to_container(OmegaConf.create(file.read_text(encoding="utf-8")))
        except (yaml.YAMLError, ValueError, OmegaConfBaseException) as error:  # ValueError: not UTF-8
            raise UserError(f"{file} is not a YAML file: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file} must hold `key: value` lines")
    return {str(key): value for key, value in values.items()}


def references(recipe: Path) -> list[tuple[str, str]]:
    """What a recipe refers to, as (corpora, prepared or vocabulary; name).

    Raises:
        UserError: the recipe cannot be read.
    """
    return sorted(set(REFERENCE.findall(" ".join(map(str, flatten(read_yaml(recipe)).values())))))


def corpora_of(recipe: Path) -> list[str]:
    """The corpora that a recipe needs, itself or for what is prepared from them."""
    used = [(kind, name) for kind, name in references(recipe) if kind != "vocabulary"]
    return list(dict.fromkeys(PREPARED[name][0] if kind == "prepared" else name for kind, name in used))


def resolve(recipe: Path, corpora: Mapping[str, Any], folder: Path, *changes: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with every reference replaced; prepares what is made from corpora, writes nothing else.

    Args:
        folder: of the experiment, where `write_recipe` will put the vocabularies.
        changes: merged into the recipe, key by key.

    Raises:
        UserError: the recipe cannot be read, lacks a section or refers to something unknown; or a corpus that it needs
            is not listed, does not exist or, for the recipes here, has another layout.
    """
    workers = corpora.get("workers")
    workers = min(os.cpu_count() or 1, MAX_WORKERS) if workers is None else workers
    values: dict[str, Any] = {"workers": workers, "processes": max(workers, 1)}
    for kind, name in references(recipe):
        value = _value(kind, name, corpora, folder, recipe)
        literal = [path.replace("${", r"\${") for path in ([value] if isinstance(value, str) else value)]
        values.setdefault(kind, {})[name] = literal[0] if isinstance(value, str) else literal
    try:
        resolved = OmegaConf.to_container(OmegaConf.merge(values, read_yaml(recipe), *changes), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{recipe}: {str(error).splitlines()[0]}") from None
    assert isinstance(resolved, dict)
    for section in SECTIONS:
        if not isinstance(resolved.get(section), dict):
            raise UserError(f"{recipe} has no section {section}; every recipe needs {' and '.join(SECTIONS)}")
    return {str(key): value for key, value in resolved.items() if key not in values}


def write_recipe(configuration: Mapping[str, Any], path: Path) -> Path:
    """Write a resolved recipe for s3prl's -c, and the vocabularies that it names beside it."""
    for name, content in preparation.VOCABULARIES.items():
        vocabulary = _vocabulary(path.parent, name)
        if vocabulary in flatten(configuration).values():
            write_text(Path(vocabulary), content)
    return write_text(path, yaml.safe_dump(dict(configuration), sort_keys=False))


def _vocabulary(folder: Path, name: str) -> str:
    return str((folder / f"{name}.txt").resolve())


def _value(kind: str, name: str, corpora: Mapping[str, Any], folder: Path, recipe: Path) -> Any:
    """What `${kind.name}` stands for."""
    if kind == "vocabulary" and name in preparation.VOCABULARIES:
        return _vocabulary(folder, name)
    if kind == "prepared" and name in PREPARED:
        source, prepare = PREPARED[name]
        if corpora.get(name):  # the user's own
            return _checked(name, corpora, recipe, contents=False)
        return str(prepare(Path(_checked(source, corpora, recipe))))
    if kind == "corpora":
        return _checked(name, corpora, recipe)
    raise UserError(f"{recipe}: ${{{kind}.{name}}} does not exist")


def _checked(name: str, corpora: Mapping[str, Any], recipe: Path, contents: bool = True) -> Any:
    """The path or paths of a corpus, once they are right.

    Args:
        contents: check for the corpus's layout too. A user's own recipe may need a part of a corpus only.
    """
    fault = next(faults(name, corpora.get(name), contents and recipe.resolve().parent == FOLDER), None)
    if fault:
        raise UserError(f"{recipe.stem} needs the corpus '{name}': {fault}")
    return corpora[name]
