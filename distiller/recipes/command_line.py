"""The recipe that a command line asks for."""

import argparse
import os
import re
from dataclasses import replace

from distiller.common.files import expanded
from distiller.recipes.recipe import Recipe, resolve
from upstream.errors import UserError, nearest


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """The recipe that the options ask for.

    Raises:
        UserError: a wrong method, recipe, key or value.
    """
    return resolve(arguments.method, arguments.recipe, arguments.teacher, arguments.corpus, arguments.overrides)


def with_absolute_paths(recipe: Recipe, dry: bool = False) -> Recipe:
    """The same with paths that hold in any directory.

    Raises:
        UserError: a teacher or corpus that is not there; a hub name is believed, and for a `dry` run any corpus.
    """
    teacher, corpus = (_absolute(name) for name in (recipe.teacher, recipe.corpus.path))
    corpus = corpus or (recipe.corpus.path if dry else None)
    if not (teacher or re.fullmatch(r"[\w.-]+/[\w.-]+", recipe.teacher)):
        raise UserError(f"teacher {recipe.teacher} does not exist; {_expected(recipe.teacher, 'a hub name ORG/NAME')}")
    if not corpus:
        raise UserError(f"corpus {recipe.corpus.path} does not exist; {_expected(recipe.corpus.path, 'a manifest')}")
    return replace(recipe, teacher=teacher or recipe.teacher, corpus=replace(recipe.corpus, path=corpus))


def _absolute(name: str) -> str | None:
    """`embedded` itself, the absolute path of something that exists, or None."""
    path = expanded(name)
    return name if name == "embedded" else str(path.resolve()) if os.path.exists(path) else None


def _expected(name: str, third: str) -> str:
    """What could stand for a path that is not there: its nearest neighbour in the folder, if any."""
    path = expanded(name)
    siblings = os.listdir(path.parent) if os.path.isdir(path.parent) and os.access(path.parent, os.R_OK) else []
    meant = nearest(path.name, ["embedded", *siblings])
    suggestion = f"; did you mean {meant if meant == 'embedded' else path.with_name(meant)}?" if meant else ""
    return f"it could be embedded, a folder or {third}{suggestion}"
