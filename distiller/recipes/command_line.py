"""The recipe that a command line asks for."""

import argparse
import os
import re
from dataclasses import replace

from distiller.common.files import expanded, require_utf8
from distiller.corpora.config import SYNTHETIC, CorpusConfig
from distiller.objectives.config import ObjectiveConfig, UnitsObjectiveConfig
from distiller.recipes.recipe import BUNDLED, Recipe, resolve
from upstream.errors import UserError, nearest


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """The recipe given by the options method, recipe, teacher, corpus, overrides and dry_run, with absolute paths.

    Raises:
        UserError: as `resolve` and `with_absolute_paths`.
    """
    recipe = resolve(arguments.method, arguments.recipe, arguments.teacher, arguments.corpus, arguments.overrides)
    teacher = "--teacher" if recipe.teacher == arguments.teacher else "teacher"
    corpus = "--corpus" if recipe.corpus.path == arguments.corpus else "corpus.path"
    return with_absolute_paths(recipe, arguments.dry_run, teacher, corpus)


def with_absolute_paths(
    recipe: Recipe, dry_run: bool = False, teacher_key: str = "teacher", corpus_key: str = "corpus.path"
) -> Recipe:
    """The same recipe with paths that are valid in any directory.

    Args:
        teacher_key, corpus_key: the keys that the user has set, for the errors.

    Raises:
        UserError: a teacher or corpus that does not exist; hub names are not checked, nor the corpus of a dry run.
    """
    teachers = [
        replace(section, path=absolute_model(section.path, f"teachers[{index}].path"))
        for index, section in enumerate(recipe.teachers)
    ]
    teacher = teachers[0].path if teachers else absolute_model(recipe.teacher, teacher_key)
    corpus = absolute_corpus(recipe.corpus, corpus_key, dry_run)
    words = [_absolute(folder, "") or folder for folder in recipe.probe.words]
    for folder in words:
        if not dry_run and not os.path.isdir(folder):
            raise UserError(f"probe.words {folder} is not a folder; it must be one with GROUP/WORD.flac")
    references = recipe.probe.references and (_absolute(recipe.probe.references, "") or recipe.probe.references)
    probe = replace(recipe.probe, words=words, references=references)
    recipe = replace(recipe, teacher=teacher, teachers=teachers, corpus=corpus, probe=probe)

    def located(section: ObjectiveConfig) -> ObjectiveConfig:
        if not isinstance(section, UnitsObjectiveConfig) or section.targets is None:
            return section
        targets, key = _absolute(section.targets, ""), f"{section.key}.targets"
        if targets is None and not dry_run:
            raise UserError(
                f"{key} {section.targets} does not exist; it must be a folder written by distiller/targets.py"
            )
        return replace(section, targets=targets or section.targets)

    return replace(recipe, objective=recipe.objective.with_parts(located))


def absolute_model(name: str, key: str) -> str:
    """A checkpoint's absolute path; other names unchanged. Raises: UserError: as `with_absolute_paths`."""
    path = _absolute(name, BUNDLED)
    if path is None and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise _missing(key, name, BUNDLED, "a hub name ORG/NAME")
    return path or name


def absolute_corpus(corpus: CorpusConfig, key: str = "corpus.path", dry_run: bool = False) -> CorpusConfig:
    """The section with absolute paths. Raises: UserError: as `with_absolute_paths`."""
    path, augment = _absolute(corpus.path, SYNTHETIC), corpus.augment
    if path is None and not dry_run:
        raise _missing(key, corpus.path, SYNTHETIC, "a manifest")
    for name in ("noise", "reverberation"):
        effect = getattr(augment, name)
        sounds = None if effect.path is None else _absolute(effect.path, SYNTHETIC)
        if sounds is None and effect.path is not None and not dry_run:
            raise _missing(f"corpus.augment.{name}.path", effect.path, SYNTHETIC, "a manifest")
        augment = replace(augment, **{name: replace(effect, path=sounds or effect.path)})
    return replace(corpus, path=path or corpus.path, augment=augment)


def _absolute(name: str, word: str) -> str | None:
    """The absolute path of something that exists, `word` itself, or None."""
    path = expanded(name)
    if name == word or not os.path.exists(path):
        return name if name == word else None
    absolute = str(path.resolve())
    require_utf8(absolute)  # a link may point anywhere
    return absolute


def _missing(key: str, name: str, word: str, third: str) -> UserError:
    """The error for a path that does not exist; suggests `word` or the nearest name in the folder."""
    path = expanded(name)
    siblings = os.listdir(path.parent) if os.path.isdir(path.parent) and os.access(path.parent, os.R_OK) else []
    meant = nearest(path.name, [word, *siblings])
    suggestion = f"; did you mean {meant if meant == word else path.with_name(meant)}?" if meant else ""
    return UserError(f"{key} {name} does not exist; it could be {word}, a folder or {third}{suggestion}")
