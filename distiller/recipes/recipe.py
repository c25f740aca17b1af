"""Recipes: everything that decides a run, typed and strict.

A recipe is a YAML of sections, each of them a dataclass. Which one may depend on a name: a new objective is a line in
`distiller.objectives.OBJECTIVES`, a new student a line in `STUDENTS` and `PRUNING` here. A YAML may start from another
(`extends: NAME`). What is not a key, or not a possible value, is one sentence (`UserError`).

This module imports no torch; a section's own module is imported when the section is read.
"""

import importlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from omegaconf import OmegaConf

from distiller.common.files import write_text
from distiller.common.strict import UNSET, typed, unknown_key
from distiller.common.values import difference, flatten
from distiller.recipes.yaml_files import CHOICES, methods, overlay, parse_overrides, read, shipped
from distiller.training.config import OptimizerConfig, TrainerConfig
from upstream.errors import UserError, one_of, require

if TYPE_CHECKING:
    from distiller.corpora.config import CorpusConfig

# Keys that a continued run may change: they decide how fast and how safely it runs, not what comes out.
RESUMABLE = frozenset({"corpus.workers", "corpus.max_skipped", "trainer.checkpoint_every"})


@dataclass
class ProbeConfig:
    """Phone and speaker probes after training; they need the embedded corpus's labels."""

    enabled: bool = False


@dataclass
class Recipe:
    """One run; `objective`, `student` and `pruning` (or None) are the dataclasses that their names stand for."""

    method: str
    seed: int
    teacher: str  # embedded, a folder or file, or a hub name
    control: str  # see distiller.distillation.controls
    corpus: "CorpusConfig"
    objective: Any
    student: Any
    pruning: Any
    optimizer: OptimizerConfig
    trainer: TrainerConfig
    probe: ProbeConfig


@dataclass
class _Head:
    """The keys outside any section."""

    method: str
    teacher: str
    seed: int = 1
    control: Literal["none", "reversed", "shuffled"] = "none"  # teacher states put where they do not belong

    def validate(self) -> None:
        require(0 <= self.seed < 2**32, "seed", self.seed, "an integer from 0 to 4294967295")


# Where a section's dataclass is: the class, or "module:attribute" to import; None where the section must be empty.
Type = type | str | None

STUDENTS: dict[str, Type] = {
    "narrow": "distiller.students.config:NarrowConfig",
    "pruned": "distiller.students.config:PrunedConfig",
}
PRUNING: dict[str, Type] = {
    "narrow": None,
    "pruned": "distiller.students.config:PruningConfig",
}  # by the student's name

# Defaults that hold for one objective with one student only. The Lagrangian of pruning assumes a loss of order 1.
PAIRS: list[dict[str, Any]] = [{"objective": {"name": "star", "relative": True}, "student": {"name": "pruned"}}]


def _objectives() -> dict[str, Type]:
    classes = importlib.import_module("distiller.objectives.registry").OBJECTIVES
    return {name: f"{reference}.config_class" for name, reference in classes.items()}


# In the order of checking, what imports nothing heavy first; a mapping is keyed by the value of CHOICES[section].
SECTIONS: dict[str, Type | Callable[[], dict[str, Type]]] = {
    "optimizer": OptimizerConfig,
    "trainer": TrainerConfig,
    "probe": ProbeConfig,
    "corpus": "distiller.corpora.config:CorpusConfig",
    "student": lambda: STUDENTS,
    "pruning": lambda: PRUNING,
    "objective": _objectives,
}


def load_recipe(name_or_file: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The shipped recipe of that name, or that YAML file, with `key=value` overrides.

    Raises:
        UserError: no such recipe; a key, type or value that cannot be.
    """
    return build(overlay(read(name_or_file), parse_overrides(overrides)))


def resolve(
    method: str | None = None,
    recipe: str | Path | None = None,
    teacher: str | None = None,
    corpus: str | None = None,
    overrides: Iterable[str] = (),
) -> Recipe:
    """The recipe that a command line asks for; `key=value` overrides win over its options.

    Raises:
        UserError: as `load_recipe`; a method that is unknown or not the recipe's.
    """
    if method is None and recipe is None:
        raise UserError(f"give --method, {one_of('', methods())}, or --recipe NAME or FILE")
    if method is not None and recipe is None and method not in methods():
        hint = f"use --recipe {method}" if method in shipped() else f"it could be {one_of(method, methods())}"
        raise UserError(f"method {method} does not exist; {hint}")
    values = read(recipe if recipe is not None else str(method))
    if method is not None and values.get("method") != method:
        raise UserError(
            f"--method {method} does not agree with --recipe {recipe}: its method is {values.get('method')}"
        )
    options: dict[str, Any] = {} if teacher is None else {"teacher": teacher}
    options |= {} if corpus is None else {"corpus": {"path": corpus}}
    values = overlay(overlay(values, options), parse_overrides(overrides))
    if flatten(values).get("corpus.path") == UNSET:
        raise UserError(
            f"corpus.path is not set, since recipe {recipe or method} is for a corpus of yours: add --corpus DIR"
        )
    return build(values)


def to_yaml(recipe: Recipe) -> str:
    """Every key of the recipe, written out."""
    return OmegaConf.to_yaml(OmegaConf.create(to_dict(recipe)))


def save(recipe: Recipe, path: Path) -> None:
    """Write `to_yaml` to `path`, whole or not at all."""
    write_text(path, to_yaml(recipe))


def first_difference(a: Recipe | Path, b: Recipe | Path, ignore: Collection[str] = RESUMABLE) -> str | None:
    """The first key that differs, with both values, as `trainer.steps (10 against 20)`; None if there is none.

    A saved recipe may be given by its path: it is compared as it stands, though other code may have written it.
    """
    left, right = (read(side) if isinstance(side, Path) else to_dict(side) for side in (a, b))
    return difference(left, right, ignore)


def to_dict(value: Any) -> Any:
    """A recipe, or a part of one, as the values its YAML holds; tuples are lists there."""
    if is_dataclass(value):
        return {field.name: to_dict(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: to_dict(item) for key, item in value.items()}
    return [to_dict(item) for item in value] if isinstance(value, (list, tuple)) else value


def build(values: Mapping[str, Any]) -> Recipe:
    """The typed recipe of a nested dict.

    Raises:
        UserError: an unknown key, a wrong type, an impossible value.
    """
    pairs = (pair for pair in PAIRS if all(_chosen(name, values) == _chosen(name, pair) for name in pair))
    values = overlay(next(pairs, {}), values)
    head = [field.name for field in fields(_Head)]
    for key in values:
        if key not in head and key not in SECTIONS:
            raise unknown_key(key, _dotted_keys(values, ending=key) or [*head, *SECTIONS])
    top = typed(_Head, {key: value for key, value in values.items() if key in head})
    sections = {name: _section(name, values) for name in SECTIONS}
    trainer = sections["trainer"]
    asked = {"strategy fsdp": trainer.strategy == "fsdp", "checkpoint_activations": trainer.checkpoint_activations}
    for key, used in asked.items():  # gates have values in the forward pass only, and probabilities outside it
        require(not used or sections["pruning"] is None, "student.name", "pruned", f"narrow with trainer.{key}")
    return Recipe(**vars(top), **sections)


def _section(name: str, values: Mapping[str, Any]) -> Any:
    cls = _section_type(name, values)
    if cls is None and values.get(name):
        key = next(iter(flatten({name: values[name]})))
        raise UserError(f"{key} is set, but there is no {name} where {CHOICES[name]} is {_chosen(name, values)}")
    return None if cls is None else typed(cls, values.get(name), name)


def _section_type(name: str, values: Mapping[str, Any]) -> type | None:
    """The dataclass of a section; None where it must be empty."""
    reference: Any = SECTIONS[name]
    if name in CHOICES:
        known, chosen = reference(), _chosen(name, values)
        if chosen == UNSET:
            raise UserError(f"{CHOICES[name]} is not set; it must be {one_of(chosen, known)}")
        require(isinstance(chosen, str) and chosen in known, CHOICES[name], chosen, one_of(chosen, known))
        reference = known[chosen]
    if not isinstance(reference, str):
        return reference
    module, _, attribute = reference.partition(":")
    return attrgetter(attribute)(importlib.import_module(module))


def _chosen(section: str, values: Mapping[str, Any]) -> Any:
    return flatten(values).get(CHOICES[section], UNSET)


def _dotted_keys(values: Mapping[str, Any], ending: str) -> list[str]:
    """Keys called `ending` in any section, for who left the section out."""
    types = {name: _section_type(name, values) for name in SECTIONS}
    return [f"{name}.{ending}" for name, cls in types.items() if cls and ending in get_type_hints(cls)]
