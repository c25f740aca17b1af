"""Recipes: everything that determines a run, typed and strict.

A recipe is a YAML of sections, each of them a pydantic dataclass in a room's `config.py`. The objective section depends
on `objective.name` (`config_class`), the student and pruning sections on `student.name` (`STUDENTS`). A YAML may start
from another (`extends: NAME`). An unknown key or an impossible value is a one-line error (`UserError`).

Nothing here imports torch.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import Field
from pydantic.dataclasses import dataclass

from distiller.augmentation.config import AugmentConfig
from distiller.common.files import write_text
from distiller.common.strict import STRICT, UNSET, Text, check, typed, unknown_key
from distiller.common.values import difference, flatten
from distiller.corpora.config import CorpusConfig
from distiller.objectives.config import ObjectiveConfig, UnitsObjectiveConfig
from distiller.objectives.registry import OBJECTIVES, config_class
from distiller.recipes.yaml_files import dump, merged, methods, overlay, parse_overrides, read, renewed, shipped
from distiller.students.config import STUDENTS, NarrowConfig, PruningConfig, StudentConfig
from distiller.teachers.config import TeacherConfig
from distiller.training.config import DistillationOptimizerConfig, OptimizerConfig, TrainerConfig
from upstream.errors import UserError, one_of, require

BUNDLED = "bundled"  # the name of the teacher in distiller/assets/teacher

# Keys that a continued run may change: they affect how fast and how safely it runs, not its result. (step_seconds has
# been turned into batch_seconds and trainer.accumulate.)
RESUMABLE = frozenset(
    {"corpus.workers", "corpus.max_skipped", "corpus.step_seconds", "trainer.checkpoint_every", "probe.references"}
)


# Keys that recipes of earlier versions lack, and their defaults.
LATER_KEYS = flatten(
    {
        "teachers": [],
        "corpus": {"augment": asdict(AugmentConfig())},
        "optimizer": {"extractor_lr_scale": 1.0},
        "student": {
            key: value
            for key, value in asdict(NarrowConfig()).items()
            if key in ("log_mel", "front_end", "attention", "look_ahead", "left_context")
        },
    }
)


@dataclass(config=STRICT)
class ProbeConfig:
    """Probes after training: of phones and speakers, on the synthetic corpus, and of words in recordings of people."""

    enabled: bool = False  # of phones and speakers
    # folders GROUP/WORD.flac, for `distiller.probes.words.Words`; their names become columns
    words: Annotated[
        list[Text],
        check(lambda folders: len({Path(folder).name for folder in folders}) == len(folders)),
        Field(description="folders of different names"),
    ] = field(default_factory=list)
    # a finished run with the same teacher and probes: its teacher and log-mel rows are copied into this run's table,
    # which then has no random student
    references: Text | None = None


@dataclass(config=STRICT, kw_only=True)
class Recipe:
    """One run."""

    method: Text
    seed: Annotated[int, Field(ge=0, lt=2**32, description="an integer from 0 to 4294967295")] = 1
    teacher: Text  # bundled, a folder or file, or a hub name; the first of several `teachers`
    teachers: list[TeacherConfig] = field(default_factory=list)  # in place of `teacher`: the student learns their mean
    control: Literal["none", "reversed", "shuffled"] = "none"  # see distiller.distillation.controls
    corpus: CorpusConfig
    objective: ObjectiveConfig  # the class that `config_class` has for its name
    student: StudentConfig  # the class that STUDENTS has for its name
    pruning: PruningConfig | None
    optimizer: DistillationOptimizerConfig
    trainer: TrainerConfig
    probe: ProbeConfig

    @property
    def all_teachers(self) -> list[TeacherConfig]:
        """The teachers, even if there is only one."""
        return self.teachers or [TeacherConfig(self.teacher)]


class AnyRecipe(Protocol):
    """What a run's folder needs of a recipe, for both distillation and fine-tuning."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    corpus: CorpusConfig
    trainer: TrainerConfig

    @property
    def optimizer(self) -> OptimizerConfig: ...


def load_recipe(name_or_file: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The shipped recipe of that name, or that YAML file, with `key=value` overrides.

    Raises:
        UserError: the recipe does not exist; an unknown key; a value of the wrong type or out of range.
    """
    return build(overlay(read(name_or_file), parse_overrides(overrides)))


def resolve(
    method: str | None = None,
    recipe: str | Path | None = None,
    teacher: str | None = None,
    corpus: str | None = None,
    overrides: Iterable[str] = (),
) -> Recipe:
    """The recipe that a command line asks for; `key=value` overrides take precedence over its options.

    Raises:
        UserError: as `load_recipe`; a method that is unknown or not the recipe's.
    """
    if method is None and recipe is None:
        raise UserError(f"give --method, {one_of('', methods())}, or --recipe NAME or FILE")
    if method is not None and recipe is None and method not in methods():
        hint = f"use --recipe {method}" if method in shipped() else f"it could be {one_of(method, methods())}"
        raise UserError(f"--method {method} does not exist; {hint}")
    values = read(recipe if recipe is not None else str(method))
    if method is not None and values.get("method") != method:
        raise UserError(f"--method {method} is not the method of --recipe {recipe}, which is {values.get('method')}")
    options: dict[str, Any] = {} if teacher is None else {"teacher": teacher}
    options |= {} if corpus is None else {"corpus": {"path": corpus}}
    values = overlay(overlay(values, renewed(options)), parse_overrides(overrides))
    if flatten(values).get("corpus.path") == UNSET:
        raise UserError(
            f"corpus.path is not set: recipe {recipe or method} needs a corpus of your own; add --corpus DIR"
        )
    return build(values)


def build(values: Mapping[str, Any]) -> Recipe:
    """The typed recipe of a nested dict.

    Raises:
        UserError: an unknown key, a wrong type, an impossible value.
    """
    kind = _name("student", values, STUDENTS)
    require(isinstance(kind, str) and kind in STUDENTS, "student.name", kind, one_of(kind, STUDENTS))
    student, name = STUDENTS[kind], _name("objective", values, OBJECTIVES)
    objective = config_class(name)
    chosen = {"student": student, "pruning": student.pruning, "objective": objective}
    sections = {field.name: field.type for field in fields(Recipe) if is_dataclass(field.type)} | chosen
    for key in values:
        if key not in Recipe.__pydantic_fields__:  # type: ignore[attr-defined]
            dotted = [f"{name}.{key}" for name, cls in sections.items() if key in getattr(cls, "__match_args__", ())]
            raise unknown_key(key, dotted or list(Recipe.__pydantic_fields__))  # type: ignore[attr-defined]
    if values.get("pruning") and student.pruning is None:
        key = next(iter(flatten({"pruning": values["pruning"]})))
        raise UserError(f"{key} is set, but student.name={values['student']['name']} does not prune")
    defaults = student.objective_defaults
    of_parts = defaults.get(name) or {part: defaults[part] for part in name.split("+") if part in defaults}
    values = {**values, "objective": merged(of_parts, values["objective"]), **_teachers(values)}
    typed_sections = {name: cls and typed(cls, values.get(name), name) for name, cls in chosen.items()}
    recipe = typed(Recipe, dict.fromkeys(sections) | values | typed_sections)
    for part in recipe.objective.parts():
        if len(recipe.teachers) > 1:
            part.check_several_teachers()
    compared = any(part.of_teacher for part in recipe.objective.parts())
    for index, section in enumerate(recipe.teachers):
        chosen = compared or section.layers is None
        require(chosen, f"teachers[{index}].layers", section.layers, "left out, since the objective compares no layers")
    if recipe.pruning is not None:  # gates have values only in the forward pass, and probabilities outside it
        fsdp, activations = recipe.trainer.strategy == "fsdp", recipe.trainer.checkpoint_activations
        require(not fsdp, "student.name", recipe.student.name, "narrow with trainer.strategy fsdp")
        require(not activations, "student.name", recipe.student.name, "narrow with trainer.checkpoint_activations")
    if recipe.trainer.strategy == "fsdp" and isinstance(recipe.student, NarrowConfig):
        log_mel = recipe.student.log_mel.steps
        require(not log_mel, "student.log_mel.steps", log_mel, "0 with trainer.strategy fsdp, which shards layers")
    if any(isinstance(part, UnitsObjectiveConfig) for part in recipe.objective.parts()):
        control, strategy = recipe.control, recipe.trainer.strategy
        require(control == "none", "control", control, "none with objective units, which has no teacher")
        # the mask is a parameter of the objective, used while the student runs
        require(
            strategy != "fsdp",
            "trainer.strategy",
            strategy,
            "auto, ddp or ddp_find_unused_parameters_true with objective units",
        )
    return recipe


def _teachers(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys `teachers` (a path is short for a section with that path) and `teacher`, the first of them.

    Raises:
        UserError: `teacher` is another one, or `teachers` is not a list of such sections.
    """
    sections = values.get("teachers") or []
    require(isinstance(sections, list), "teachers", sections, "a list of paths, or of sections such as {path: bundled}")
    teachers = [
        typed(TeacherConfig, {"path": each} if isinstance(each, str) else each, f"teachers[{index}]")
        for index, each in enumerate(sections)
    ]
    if not teachers:
        return {"teachers": []}
    first = teachers[0].path
    require(values.get("teacher", first) == first, "teacher", values.get("teacher"), "left out when teachers is set")
    return {"teachers": teachers, "teacher": first}


def _name(section: str, values: Mapping[str, Any], known: Collection[str]) -> Any:
    """The value of the key `name` in a section that depends on it."""
    chosen = flatten(values).get(f"{section}.name", UNSET)
    if chosen == UNSET:
        raise UserError(f"{section}.name is not set; it must be {one_of(chosen, known)}")
    return chosen


def final_stage(recipe: Recipe) -> Recipe:
    """The recipe of the second distillation of a pruned student, relative to the first's (`pruning.final`)."""
    assert recipe.pruning is not None
    final, first = recipe.pruning.final, recipe.trainer
    lengths = {"steps": first.steps, "epochs": first.epochs}
    return replace(
        recipe,
        optimizer=replace(recipe.optimizer, lr=recipe.optimizer.lr * final.lr_scale, warmup=final.warmup),
        trainer=replace(
            first, **{key: value and max(1, round(value * final.length)) for key, value in lengths.items()}
        ),
    )


def in_batches(recipe: Recipe, devices: int, most: float) -> Recipe:
    """With corpus.batch_seconds=auto: corpus.step_seconds on all devices as equal batches of at most `most` seconds."""
    share = (recipe.corpus.step_seconds or 0.0) / devices
    count = max(1, math.ceil(share / most - 1e-6))
    corpus, trainer = replace(recipe.corpus, batch_seconds=share / count), replace(recipe.trainer, accumulate=count)
    return replace(recipe, corpus=corpus, trainer=trainer)


def to_dict(recipe: AnyRecipe) -> dict[str, Any]:
    """A recipe as the values in its YAML, where tuples are lists."""
    values = asdict(recipe)
    values["optimizer"]["betas"] = list(recipe.optimizer.betas)
    return values


def to_yaml(recipe: AnyRecipe) -> str:
    """Every key of the recipe, written out."""
    return dump(to_dict(recipe))


def save(recipe: AnyRecipe, path: Path) -> None:
    """Write `to_yaml` to `path`, atomically."""
    write_text(path, to_yaml(recipe))


def first_difference(a: AnyRecipe | Path, b: AnyRecipe | Path, ignore: Collection[str] = RESUMABLE) -> str | None:
    """The first key that differs, with both values, as `trainer.steps (10 against 20)`; None if there is none.

    A saved recipe may be given by its path; it is not checked, since an older version may have written it.
    """
    first, second = (flatten(read(side) if isinstance(side, Path) else to_dict(side)) for side in (a, b))
    # a key missing because the saved recipe's version did not have it counts as its default
    added = LATER_KEYS.items() if isinstance(a, Path) or isinstance(b, Path) else ()
    default = {key: value for key, value in added if key in first or key in second}
    return difference(default | first, default | second, ignore)
