"""Corpora in the right layout, of empty files."""

from pathlib import Path

from downstream_recipes.tasks.corpus_layouts import CORPORA


def lay_out(name: str, path: Path) -> None:
    """Whatever has to be there, once each; a corpus that is a file is an empty one."""
    path.mkdir() if CORPORA[name].needs else path.touch()
    for need in CORPORA[name].needs:
        file = path / need.replace("*", "1")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
