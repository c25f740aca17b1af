"""Miniature corpora of every task, synthesised: a folder with a corpora.yaml like that of real ones."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import yaml

from distiller.common.files import cache_folder, write_text
from distiller.common.progress import progress
from downstream_recipes.miniature import layouts
from downstream_recipes.miniature.recordings import Studio, open_studio
from upstream.errors import UserError

VERSION = 1  # raised when anything above changes what is written
CORPORA_FILE = "corpora.yaml"

Layout = Callable[[Studio, Path, Path], None]
LAYOUTS: Mapping[str, Layout] = {
    "librispeech": layouts.librispeech,
    "lexicon": layouts.lexicon,
    "speech_commands": layouts.speech_commands,
    "speech_commands_test": layouts.speech_commands_test,
    "quesst14": layouts.quesst14,
    "voxceleb1": layouts.voxceleb1,
    "libri2mix_diarization": layouts.libri2mix_diarization,
    "fluent_commands": layouts.fluent_commands,
    "snips": layouts.snips,
    "iemocap": layouts.iemocap,
    "voicebank": layouts.voicebank,
    "libri2mix_separation": layouts.libri2mix_separation,
}
# What the corpora file says beside `corpus: corpus`. Data loaders of a miniature corpus cost more than they save.
PATHS = {
    "lexicon": ["lexicon/lexicon.txt"],
    "voxceleb1_split": "voxceleb1/iden_split.txt",
    "voxceleb1_trials": "voxceleb1/veri_test2.txt",
    "workers": 0,
    "miniature": True,
}


def make_miniature(directory: Path, scale: float = 1.0) -> Path:
    """Synthesise all corpora into `directory`, whole or not at all; its corpora file.

    A directory that holds them already is left as it is.

    Args:
        scale: how much of everything, 1 is what the suite's miniature settings are made for.

    Raises:
        UserError: the directory holds something else, cannot be written, or espeakng-loader is missing.
    """
    with open_studio(scale) as studio:
        return make_with(studio, directory)


def make_with(studio: Studio, directory: Path) -> Path:
    """`make_miniature`, and its errors, with a studio at hand."""
    directory = directory.absolute()
    corpora_file = directory / CORPORA_FILE
    if corpora_file.exists():
        return corpora_file
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory}: not empty, and no miniature corpora")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}-"))
        try:
            for name, layout in progress(LAYOUTS.items(), "miniature corpora"):
                (unfinished / name).mkdir()
                layout(studio, unfinished / name, directory / name)
            values = {name: name for name in LAYOUTS} | PATHS
            write_text(unfinished / CORPORA_FILE, yaml.safe_dump(values, sort_keys=False))
            unfinished.chmod(0o755)
            with contextlib.suppress(FileNotFoundError):
                directory.rmdir()
            unfinished.rename(directory)
        except FileExistsError:  # another process was faster
            return corpora_file
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{directory}: cannot be written ({error.strerror or os.strerror(error.errno or 0)})") from None
    return corpora_file


def cached_miniature() -> Path:
    """The corpora file of the miniature corpora in the user's cache, synthesised on first use."""
    return make_miniature(cache_folder("superb") / f"miniature-{VERSION}")
