"""A recipe and a list of corpora make the configuration that s3prl takes.

Recipes name what they need as `${corpora.KEY}` (corpora.yaml), `${prepared.NAME}` and `${vocabulary.NAME}` (made on
first use, preparation.py), `${workers}` of a data loader (0: none) and `${processes}` (at least 1).
"""

import difflib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distiller.common.files import expanded
from downstream_recipes.tasks import preparation
from downstream_recipes.tasks.corpus_layouts import faults
from upstream.errors import UserError

TEMPLATE = Path(__file__).parents[1] / "corpora.yaml"
ENVIRONMENT = "SUPERB_CORPORA"
REFERENCE = re.compile(r"\$\{(corpora|prepared|vocabulary)\.(\w+)\}")
MAX_WORKERS = 4
SETTINGS = ("workers", "miniature")  # keys of a corpora file that are no paths

VOCABULARIES: Mapping[str, Callable[[Path], Path]] = {
    "phonemes": preparation.write_phonemes,
    "characters": preparation.write_characters,
    "letters": preparation.write_letters,
}
# name -> the corpus it is made from, and how
PREPARED: Mapping[str, tuple[str, Callable[[Path], Path]]] = {
    "asr_lengths": ("librispeech", preparation.asr_lengths),
    "emotion_folds": ("iemocap", preparation.emotion_folds),
}


def read_corpora(path: str | Path | None) -> dict[str, Any]:
    """The corpora file (`path`, else $SUPERB_CORPORA): key -> absolute path or paths, SETTINGS as they are.

    `mini` stands for the miniature corpora in the user's cache, which are synthesised on first use.

    Raises:
        UserError: none is named, it cannot be read, or it has a key that no recipe knows, or no path for one.
    """
    chosen = path or os.environ.get(ENVIRONMENT)
    if not chosen:
        raise UserError(f"which corpora? give --corpora FILE or set ${ENVIRONMENT}; {TEMPLATE} is the file to copy")
    file = (_miniature() if str(chosen) == "mini" else Path(chosen)).resolve()
    try:
        values = yaml.safe_load(file.read_text())
    except OSError as error:
        raise UserError(f"{chosen}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:  # no text, or a date that there is not
        raise UserError(f"{chosen}: not a YAML file ({str(error).splitlines()[0]})") from None
    if not isinstance(values, dict):
        raise UserError(f"{chosen}: not a list of `corpus: path` lines")
    template = yaml.safe_load(TEMPLATE.read_text())
    known = [*template, *PREPARED, *SETTINGS]
    for key in values:
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0)[0]
            raise UserError(f"{chosen}: unknown key '{key}'; the nearest known one is '{nearest}'")
    for key in set(values) - set(SETTINGS):
        several = isinstance(template.get(key), list)
        values[key] = _absolute(f"{chosen}: {key}", values[key], several, file.parent)
    return values


def _miniature() -> Path:
    from downstream_recipes.miniature.make import cached_miniature

    return cached_miniature()


def _absolute(name: str, value: Any, several: bool, folder: Path) -> Any:
    """Paths of the file, relative to its folder; where there may be several, a single one is a list of one."""
    if value is None:
        return None
    paths = value if several and isinstance(value, list) else [value]
    if not paths or not all(isinstance(path, str) and path for path in paths):
        raise UserError(f"{name} is {value!r}; a path{' or a list of paths' if several else ''} is needed")
    absolute = [str((folder / expanded(path)).resolve()) for path in paths]
    return absolute if several else absolute[0]


def read_recipe(recipe: Path) -> str:
    """Raises: UserError: no such file, or no text."""
    try:
        return recipe.read_text()
    except OSError as error:
        raise UserError(f"{recipe}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{recipe}: not a YAML file (not a text file)") from None


def resolve(
    recipe: Path, corpora: Mapping[str, Any], directory: Path, changes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The recipe with every reference replaced; what has to be made first is made.

    Args:
        directory: where the vocabularies are written, the experiment folder.
        changes: merged into the recipe, key by key.

    Raises:
        UserError: the recipe cannot be read or refers to something unknown, or a corpus that it needs is not listed,
            not there or, for the recipes here, another one.
    """
    text = read_recipe(recipe)
    try:
        configuration = OmegaConf.create(text)
    except (yaml.YAMLError, ValueError, OmegaConfBaseException) as error:
        raise UserError(f"{recipe}: not a YAML file ({str(error).splitlines()[0]})") from None
    if not isinstance(configuration, DictConfig) or not configuration:
        raise UserError(f"{recipe}: no recipe; sections like `runner:` and `downstream_expert:` are needed")
    workers = _workers(corpora)
    values: dict[str, Any] = {"corpora": {}, "prepared": {}, "vocabulary": {}}
    values |= {"workers": workers, "processes": max(workers, 1)}
    for kind, name in sorted(set(REFERENCE.findall(text))):
        values[kind][name] = _find(kind, name, corpora, directory, recipe)
    try:
        resolved = OmegaConf.to_container(OmegaConf.merge(values, configuration, changes or {}), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{recipe}: {str(error).splitlines()[0]}") from None
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items() if key not in values}


def _find(kind: str, name: str, corpora: Mapping[str, Any], directory: Path, recipe: Path) -> Any:
    if kind == "vocabulary" and name in VOCABULARIES:
        return str(VOCABULARIES[name]((directory / f"{name}.txt").resolve()))
    if kind == "prepared" and name in PREPARED:
        source, prepare = PREPARED[name]
        ready = corpora.get(name)  # the user's own, where the file has the key
        return existing(name, ready, recipe) if ready else str(prepare(Path(_corpus(source, corpora, recipe))))
    if kind == "corpora":
        return _corpus(name, corpora, recipe)
    raise UserError(f"{recipe}: ${{{kind}.{name}}} is nothing that can be made")


def _corpus(name: str, corpora: Mapping[str, Any], recipe: Path) -> Any:
    if corpora.get(name) is None:
        raise UserError(f"{recipe.stem} needs the corpus '{name}', which the corpora file does not list")
    # a recipe of the user's own may get along with a part of a corpus
    fault = next(faults(name, corpora[name]), None) if recipe.resolve().parent == TEMPLATE.resolve().parent else None
    if fault:
        raise UserError(f"{recipe.stem} needs the corpus '{name}': {fault}")
    return existing(name, corpora[name], recipe)


def existing(name: str, value: Any, recipe: Path) -> Any:
    """`value`, a path or paths.

    Raises:
        UserError: a path that is not there.
    """
    for path in value if isinstance(value, list) else [value]:
        if not Path(path).exists():
            raise UserError(f"{recipe.stem} needs the corpus '{name}': {path} does not exist")
    return value


def _workers(corpora: Mapping[str, Any]) -> int:
    workers = corpora.get("workers")
    if workers is None:
        return min(os.cpu_count() or 1, MAX_WORKERS)
    if not isinstance(workers, int) or isinstance(workers, bool) or workers < 0:
        raise UserError(f"corpora file: workers is {workers!r}; a number of processes, 0 or more, is needed")
    return workers
