"""A table of models, and of log-mel energies for comparison, on probes with recordings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table

from distiller.audio.skipped import write_skipped
from distiller.augmentation.conditions import CLEAN, Degrade
from distiller.common.files import write_csv
from distiller.corpora.config import SYNTHETIC
from distiller.probes.abx import Abx, check_installed
from distiller.probes.classes import Classes
from distiller.probes.phones import Probe
from distiller.probes.representations import (
    CONTEXT,
    FRAME,
    HOP,
    Representation,
    degraded,
    encoder_layers,
    filterbank,
)
from distiller.probes.words import Words
from upstream.config import SAMPLE_RATE
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError

AnyProbe = Words | Classes | Abx | Probe


def load_probes(
    encoders: Mapping[str, SpeechEncoder],
    words: Sequence[Path],
    classes: Sequence[Path],
    abx: Sequence[str],
    synthetic: bool,
) -> list[tuple[Path, AnyProbe]]:
    """Probes by the folders of their recordings.

    Args:
        encoders: to be probed.
        words, classes: folders for `Words.load` and `Classes.load`.
        abx: folders for `Abx.load`, or "synthetic".
        synthetic: also phones and speakers of the synthetic corpus.

    Raises:
        UserError: a folder cannot be used; fastabx is not installed, or does not fit an encoder's frames.
    """
    if abx:
        check_frames(encoders)
    configs = [encoder.config for encoder in encoders.values()]
    shortest = max([FRAME, *(config.min_samples for config in configs)])
    probes: list[tuple[Path, AnyProbe]] = [(folder, Words.load(folder, shortest)) for folder in words]
    probes += [(folder, Classes.load(folder, shortest)) for folder in classes]
    for name in abx:
        probes.append((Path(name), Abx.synthetic() if name == SYNTHETIC else Abx.load(Path(name), shortest)))
    if synthetic:
        probes.append((Path(SYNTHETIC), Probe.synthetic(configs[0].frame_count)))
    return probes


def evaluate(
    encoders: Mapping[str, SpeechEncoder],
    probes: Sequence[tuple[Path, AnyProbe]],
    output: Path,
    heard: Mapping[str, Degrade | None] = MappingProxyType({CLEAN: None}),
) -> None:
    """Probe every layer of the encoders and of both filterbanks; write the table, and print its last and best layers.

    Args:
        encoders: by their names in the table.
        probes: from `load_probes`.
        output: the table; what could not be used is listed beside it.
        heard: from `conditions`; a table for each. Classifiers are always fitted on clean speech.

    Raises:
        UserError: the table cannot be written.
    """
    representations = {"log-mel": filterbank(), f"log-mel, ±{CONTEXT} frames": filterbank(CONTEXT)}
    representations |= {name: encoder_layers(encoder) for name, encoder in encoders.items()}
    rows: list[dict[str, Any]] = []
    for folder, probe in probes:
        results: dict[str, dict[str, dict[str, Any]]] = {condition: {} for condition in heard}
        for name, represent in representations.items():
            for condition, result in _heard(probe, represent, name, heard).items():
                results[condition][name] = result
        for condition, by_model in results.items():
            rows += _rows(folder, by_model, condition)
            title = f"{folder}, {condition}" if len(heard) > 1 else str(folder)
            Console(width=100).print(_table(title, by_model))
        write_csv(output, rows)  # so far
    skipped, listed = {row for _, probe in probes for row in probe.skipped}, output.with_suffix(".skipped.csv")
    write_skipped(listed, sorted(skipped))
    if skipped:
        print(f"{len(skipped)} file{'' if len(skipped) == 1 else 's'} set aside ({listed} says why)")
    print(f"Layers  {output}")


def _heard(
    probe: AnyProbe, represent: Representation, name: str, heard: Mapping[str, Degrade | None]
) -> dict[str, dict[str, Any]]:
    """A probe's result in each condition."""
    if not isinstance(probe, Probe):
        return {title: probe.run(degraded(represent, degrade), name) for title, degrade in heard.items()}
    fitted = probe.fit(represent, name)
    return {title: probe.test(fitted, degraded(represent, degrade), name) for title, degrade in heard.items()}


def check_frames(encoders: Mapping[str, SpeechEncoder]) -> None:
    """Raises: UserError: fastabx is not installed, or an encoder's frames are not 20 ms apart as ABX takes them."""
    check_installed()
    for name, encoder in encoders.items():
        if encoder.config.samples_per_frame != HOP:
            shift = 1000 * encoder.config.samples_per_frame / SAMPLE_RATE
            raise UserError(f"{name} has a frame every {shift:g} ms, but ABX takes encoders with one every 20 ms")


def _rows(folder: Path, results: Mapping[str, dict[str, Any]], heard: str) -> list[dict[str, Any]]:
    return [
        {"folder": folder, "heard": heard, "model": name, "layer": layer, "measure": measure, "percent": percent}
        for name, result in results.items()
        for measure, percents in result["layers"].items()
        for layer, percent in enumerate(percents, start=1)
    ]


def _table(title: str, results: Mapping[str, dict[str, Any]]) -> Table:
    columns = [key for key in next(iter(results.values())) if key != "layers"]
    of_errors = " of errors" if any(key.startswith("abx") for key in columns) else ""
    titles = (Column(key.replace("_best", ", best layer"), justify="right") for key in columns)
    table = Table(Column(overflow="fold"), *titles, title=f"{title}, percent{of_errors}", box=box.SIMPLE_HEAD)
    for name, result in results.items():
        table.add_row(name, *(f"{result[key]:.1f}" for key in columns))
    return table
