"""Recipes as plain nested values: the YAML files, what they extend, overrides, and where two of them differ."""

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from distiller.common.files import expanded
from distiller.common.values import flatten
from upstream.errors import UserError, one_of

# What reading YAML raises: ValueError is for text that is not UTF-8, and for dates and numbers that are none.
INVALID = (YAMLError, OmegaConfBaseException, ValueError, RecursionError)
RECIPES = Path(__file__).parent

# Sections whose keys depend on a name, and the key that holds it.
CHOICES = {"objective": "objective.name", "student": "student.name", "pruning": "student.name"}

# Setting one of these unsets the others.
EXCLUSIVE = ({"trainer.epochs", "trainer.steps"},)


def shipped() -> list[str]:
    """Names of the recipes that come with the code."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def methods() -> list[str]:
    """Names that `--method` takes: the recipes that carry their method's name."""
    return [name for name in shipped() if read(name).get("method") == name]


def read(name_or_file: str | Path, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    """What a recipe's YAML says, with what it extends; keys and types are not looked at.

    Args:
        name_or_file: a shipped recipe's name, or a file: a path with a slash or ending in .yaml.
        extended_by: the files that led here by `extends: NAME or FILE`; a path there is relative to its file.

    Raises:
        UserError: no such recipe or file, or not a YAML mapping.
    """
    path = _locate(name_or_file, extended_by[-1].parent if extended_by else Path())
    if path in extended_by:
        raise UserError(f"recipe {path} extends itself")
    try:
        values: Any = OmegaConf.to_container(OmegaConf.load(path))
    except OSError as error:
        raise UserError(f"recipe {path} cannot be read: {error.strerror or error}") from error
    except INVALID as error:
        raise UserError(f"recipe {path} is not valid YAML: {_reason(error)}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"recipe {path} is not a mapping of sections")
    parent = values.pop("extends", None)
    return overlay({} if parent is None else read(str(parent), (*extended_by, path)), values)


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """`["optimizer.lr=1e-3", "objective=star"]` as nested values; of two for one key the later wins.

    Raises:
        UserError: not of the form key=value, or not a YAML value.
    """
    values: dict[str, Any] = {}
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", key):
            raise UserError(f"argument {override!r:.200} is not of the form key=value, such as optimizer.lr=1e-3")
        try:
            parsed: Any = OmegaConf.to_container(OmegaConf.from_dotlist([override]))
        except INVALID as error:
            raise UserError(f"the value of {override:.200} is not valid YAML: {_reason(error)}") from error
        values = _merge(values, _named(parsed))
    return values


def overlay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`; where `over` chooses another objective or student, `base`'s keys for it go."""
    base, over = _named(base), _named(over)
    before, after = flatten(base), flatten(over)
    changed = {section for section, key in CHOICES.items() if key in after and after[key] != before.get(key)}
    unset = {key for keys in EXCLUSIVE if keys & after.keys() for key in keys}
    return _merge(_without(base, changed | unset), over)


def _locate(name_or_file: str | Path, folder: Path) -> Path:
    text = str(name_or_file)
    if isinstance(name_or_file, Path) or "/" in text or text.endswith((".yaml", ".yml")):
        path = (folder / expanded(text)).resolve()
        if not path.is_file():
            raise UserError(f"recipe file {text} does not exist; shipped recipes are {', '.join(shipped())}")
        return path
    if text not in shipped():
        raise UserError(f"recipe {text} does not exist; it could be a FILE.yaml or {one_of(text, shipped())}")
    return RECIPES / f"{text}.yaml"


def _named(values: Mapping[str, Any]) -> dict[str, Any]:
    """`objective: star` is short for `objective: {name: star}`, and so for `student`."""
    own = {section for section, key in CHOICES.items() if key == f"{section}.name"}
    return {key: {"name": value} if key in own and isinstance(value, str) else value for key, value in values.items()}


def _merge(base: Any, over: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return base | {key: _merge(base.get(key), value) for key, value in over.items()}


def _without(values: Mapping[str, Any], keys: Collection[str], prefix: str = "") -> dict[str, Any]:
    kept = {key: value for key, value in values.items() if f"{prefix}{key}" not in keys}
    return {key: _without(v, keys, f"{prefix}{key}.") if isinstance(v, dict) else v for key, v in kept.items()}


def _reason(error: Exception) -> str:
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem} (line {error.problem_mark.line + 1})"
    return str(error).partition("\n")[0]
