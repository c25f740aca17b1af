"""Recipes as plain nested values: YAML files, what they extend, and overrides on the command line."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import yaml

from distiller.common.files import disk_errors, expanded
from upstream.errors import UserError, one_of
from upstream.files import parse_errors

RECIPES = Path(__file__).parent
MAX_ALIASES = 20  # in one file: a few lines of aliases of aliases can expand to gigabytes
# Words of earlier versions, which old recipes and commands may still contain.
OLD_KEYS = {"objective": {"zeroth": "layer_zero"}}
OLD_VALUES = {
    "teacher": {"embedded": "bundled"},
    "corpus.path": {"embedded": "synthetic"},
    "student.size": {"embedded": "synthetic"},
    "objective.calibration.corpus": {"embedded": "synthetic"},
    "objective.layer_zero": {"projected": "feature_projection", "layer_input": "transformer_input"},
}


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number and 2026-01-01 text, keys are unique, and aliases cannot exhaust memory."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.aliases, self.enclosing = 0, []

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        self.aliases += isinstance(event, yaml.AliasEvent)
        if self.aliases > MAX_ALIASES or (isinstance(event, yaml.AliasEvent) and event.anchor in self.enclosing):
            raise yaml.YAMLError(f"it has an alias inside its own value, or more than {MAX_ALIASES} aliases")
        self.enclosing.append(getattr(event, "anchor", None))
        node = super().compose_node(parent, index)
        self.enclosing.pop()
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if repeated := [name for (_, name), count in Counter(keys).items() if count > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"found duplicate key {repeated[0]}", node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads."""


for kind in (_Loader, _Dumper):
    kind.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in kind.yaml_implicit_resolvers.items()
    }
    number = re.compile(r"[-+]?\d[\d_]*(\.\d*)?[eE][-+]?\d+$")
    kind.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))


def shipped(recipes: Path = RECIPES) -> list[str]:
    """Names of the recipes that come with the code: of distillation, or those in another folder."""
    return sorted(path.stem for path in recipes.glob("*.yaml"))


def methods() -> list[str]:
    """Names that `--method` takes: the recipes that carry their method's name."""
    return [name for name in shipped() if read(name).get("method") == name]


def read(name_or_file: str | Path, extended_by: tuple[Path, ...] = (), recipes: Path = RECIPES) -> dict[str, Any]:
    """The values of a recipe's YAML and of what it extends; their keys and types are not checked.

    Args:
        name_or_file: a shipped recipe's name, or a file: a path with a slash or ending in .yaml.
        extended_by: the files that led here by `extends: NAME or FILE`; a path there is relative to its file.
        recipes: the folder of the shipped ones.

    Raises:
        UserError: the recipe or file does not exist, or is not a YAML mapping.
    """
    path = _locate(name_or_file, extended_by[-1].parent if extended_by else Path(), recipes)
    if path in extended_by:
        raise UserError(f"recipe {path} extends itself")
    with disk_errors(path, "read"):
        values = _load(path.read_bytes(), f"recipe {path}")
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"recipe {path} is not a mapping of sections")
    parent = values.pop("extends", None)
    return overlay({} if parent is None else read(str(parent), (*extended_by, path), recipes), renewed(values))


def dump(values: Mapping[str, Any]) -> str:
    """The YAML from which `read` returns the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """`["optimizer.lr=1e-3", "objective=star"]` as nested values; the last value of a key wins.

    Raises:
        UserError: not of the form key=value, or not a YAML value.
    """
    values: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", key):
            raise UserError(f"argument {override!r:.200} is not of the form key=value, such as optimizer.lr=1e-3")
        value = _load(text, f"the value of {override:.200}")
        for name in reversed(key.split(".")):
            value = {name: value}
        values = merged(values, renewed(value))
    return values


def renewed(values: dict[str, Any]) -> dict[str, Any]:
    """`values` with current words, and `objective: star` written out as `objective: {name: star}`."""
    for section in ("objective", "student"):
        if isinstance(values.get(section), str):
            values[section] = {"name": values[section]}
    for section, names in OLD_KEYS.items():
        if isinstance(values.get(section), dict):
            values[section] = {names.get(key, key): value for key, value in values[section].items()}
    for key, words in OLD_VALUES.items():
        *sections, name = key.split(".")
        section = reduce(_keys, sections, values)
        if isinstance(section.get(name), str):
            section[name] = words.get(section[name], section[name])
    return values


def overlay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`, both in current words.

    If `over` chooses another objective or student, `base`'s keys for it are dropped, except those of an objective that
    is part of both, such as star in star+units; trainer.epochs and .steps replace each other, and so do teacher and
    teachers.
    """
    base, lengths, teachers = dict(base), {"epochs", "steps"}, {"teacher", "teachers"}
    for section, dependent in (("objective", ["objective"]), ("student", ["student", "pruning"])):
        name, before = _keys(over, section).get("name"), _keys(base, section)
        if name is not None and name != before.get("name"):
            base = {key: value for key, value in base.items() if key not in dependent}
            if section == "objective" and isinstance(name, str):
                base[section] = _shared(before, name)
    if "trainer" in base and lengths & _keys(over, "trainer").keys():
        base["trainer"] = {key: value for key, value in _keys(base, "trainer").items() if key not in lengths}
    if teachers & over.keys():
        base = {key: value for key, value in base.items() if key not in teachers}
    return merged(base, over)


def _shared(before: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The keys of an objective section that the objective or sum called `name` shares."""
    old = str(before.get("name"))
    keys = {key: value for key, value in before.items() if key != "name"}
    sections = {part: _keys(keys, part) for part in old.split("+")} if "+" in old else {old: keys}
    shared = {part: sections[part] for part in name.split("+") if sections.get(part)}
    if "+" in name:
        return shared
    return {key: value for key, value in shared.get(name, {}).items() if key not in ("name", "weight")}


def _keys(values: Mapping[str, Any], section: str) -> dict[str, Any]:
    """A section; empty if it is missing or not a mapping."""
    keys = values.get(section)
    return keys if isinstance(keys, dict) else {}


def _locate(name_or_file: str | Path, folder: Path, recipes: Path) -> Path:
    text, known = str(name_or_file), shipped(recipes)
    if isinstance(name_or_file, Path) or "/" in text or text.endswith((".yaml", ".yml")):
        path = (folder / expanded(text)).resolve()
        if not path.is_file():
            raise UserError(f"recipe file {text} does not exist; shipped recipes are {', '.join(known)}")
        return path
    if text not in known:
        raise UserError(f"recipe {text} does not exist; it could be a FILE.yaml or {one_of(text, known)}")
    return recipes / f"{text}.yaml"


def merged(base: Any, over: Any) -> Any:
    """The nested values of `base`, with those of `over` replacing them."""
    if not (isinstance(base, Mapping) and isinstance(over, Mapping)):
        return over
    return {**base, **{key: merged(base.get(key), value) for key, value in over.items()}}


def _load(text: str | bytes, name: str) -> Any:
    with parse_errors(name, "valid YAML"):
        return yaml.load(text, _Loader)
