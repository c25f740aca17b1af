"""Models through the probes of folders of recordings, log-mel energies beside them: a table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table

from distiller.audio.skipped import write_skipped
from distiller.common.files import write_csv
from distiller.probes.classes import Classes
from distiller.probes.representations import CONTEXT, FRAME, encoder_layers, filterbank
from distiller.probes.words import Words
from upstream.encoder import SpeechEncoder


def evaluate(
    encoders: Mapping[str, SpeechEncoder], words: Sequence[Path], classes: Sequence[Path], output: Path
) -> None:
    """Probe every layer of the encoders and of both filterbanks; write the table, and print its last and best layers.

    Args:
        encoders: by the names that the table gives them.
        words, classes: folders for `Words.load` and `Classes.load`.
        output: the table; what could not be used is listed beside it.

    Raises:
        UserError: a folder cannot be used, or the table not be written.
    """
    min_samples = max([FRAME, *(encoder.config.min_samples for encoder in encoders.values())])
    probes: list[tuple[Path, Words | Classes]] = [
        *((folder, Words.load(folder, min_samples)) for folder in words),
        *((folder, Classes.load(folder, min_samples)) for folder in classes),
    ]
    representations = {"log-mel": filterbank(), f"log-mel, ±{CONTEXT} frames": filterbank(CONTEXT)}
    representations |= {name: encoder_layers(encoder) for name, encoder in encoders.items()}
    rows: list[dict[str, Any]] = []
    for folder, probe in probes:
        results = {name: probe.run(represent, name) for name, represent in representations.items()}
        rows += _rows(folder, results)
        write_csv(output, rows)  # so far
        Console(width=100).print(_table(folder, results))
    skipped, listed = {row for _, probe in probes for row in probe.skipped}, output.with_suffix(".skipped.csv")
    write_skipped(listed, sorted(skipped))
    if skipped:
        print(f"{len(skipped)} file{'' if len(skipped) == 1 else 's'} set aside ({listed} says why)")
    print(f"Layers  {output}")


def _rows(folder: Path, results: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"folder": folder, "model": name, "layer": layer, "measure": measure, "percent": percent}
        for name, result in results.items()
        for measure, percents in result["layers"].items()
        for layer, percent in enumerate(percents, start=1)
    ]


def _table(folder: Path, results: Mapping[str, dict[str, Any]]) -> Table:
    columns = [key for key in next(iter(results.values())) if key != "layers"]
    titles = (Column(key.replace("_best", ", best layer"), justify="right") for key in columns)
    table = Table("", *titles, title=f"{folder}, percent", box=box.SIMPLE_HEAD)
    for name, result in results.items():
        table.add_row(name, *(f"{result[key]:.1f}" for key in columns))
    return table
