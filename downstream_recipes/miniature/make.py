"""Miniature corpora of every task, synthesised: a folder with a corpora.yaml like that of real corpora."""

import os
from functools import partial
from pathlib import Path

import yaml

from distiller.common.files import cache_folder, disk_errors, expanded, write_text, writing_folder
from distiller.common.progress import progress
from distiller.synthesis.espeak import Synthesizer
from distiller.synthesis.utterances import render
from downstream_recipes.miniature.layouts import LAYOUTS
from downstream_recipes.miniature.recordings import Studio
from downstream_recipes.tasks.tasks import FOLDER
from upstream.errors import UserError

VERSION = 1  # increase when a change in this package changes the output
CORPORA_FILE = "corpora.yaml"
ENVIRONMENT = "SUPERB_CORPORA"

# Entries of the corpora file besides `corpus: corpus`. For miniature corpora, data loading processes would cost more
# time than they save.
PATHS = {
    "lexicon": ["lexicon/lexicon.txt"],
    "voxceleb1_split": "voxceleb1/iden_split.txt",
    "voxceleb1_trials": "voxceleb1/veri_test2.txt",
    "workers": 0,
    "miniature": True,
}


def corpora_file(name: str | None) -> Path:
    """The corpora file given by a command's --corpora: `name`, otherwise $SUPERB_CORPORA.

    `mini` means the miniature corpora in the user's cache, which are synthesised on first use.

    Raises:
        UserError: neither is given, or as `make_miniature`.
    """
    name = name or os.environ.get(ENVIRONMENT)
    if not name:
        template = FOLDER / CORPORA_FILE
        raise UserError(f"--corpora is not set; give --corpora FILE or set ${ENVIRONMENT}; {template} is a template")
    return make_miniature(cache_folder("superb") / f"miniature-{VERSION}") if name == "mini" else expanded(name)


def make_miniature(directory: Path, scale: float = 1.0) -> Path:
    """Synthesise all corpora into `directory`, atomically; returns their corpora file.

    A directory that already contains them is left unchanged.

    Args:
        scale: factor on the size of everything; the suite's miniature settings are made for 1.

    Raises:
        UserError: the directory holds something else, cannot be written, or espeakng-loader is missing.
    """
    with Synthesizer() as synthesizer:
        return make_with(Studio(partial(render, synthesizer=synthesizer), scale), directory)


def make_with(studio: Studio, directory: Path) -> Path:
    """`make_miniature` with a given studio, and with its errors."""
    directory = directory.absolute()
    if (directory / CORPORA_FILE).exists():
        return directory / CORPORA_FILE
    with disk_errors(directory):
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise UserError(f"{directory} is not empty and does not hold miniature corpora; choose another folder")
        if directory.exists():
            directory.rmdir()
    with writing_folder(directory) as folder:
        for name, layout in progress(LAYOUTS.items(), "miniature corpora"):
            (folder / name).mkdir()
            layout(studio, folder / name, directory / name)
        values = {name: name for name in LAYOUTS} | PATHS
        write_text(folder / CORPORA_FILE, yaml.safe_dump(values, sort_keys=False))
    return directory / CORPORA_FILE
