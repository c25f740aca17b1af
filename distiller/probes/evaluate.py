"""Models through the probes of one or more folders, log-mel energies beside them: the rows of a table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from distiller.common.files import write_csv
from distiller.probes.representations import CONTEXT, Representation, encoder_layers, filterbank
from distiller.probes.words import MIN_SAMPLES, Words
from upstream.encoder import SpeechEncoder


class RunsProbe(Protocol):
    """Recordings that a representation can be tried on."""

    def run(self, represent: Representation, name: str = "") -> dict[str, object]: ...


def evaluate(encoders: Mapping[str, SpeechEncoder], words: Sequence[Path], output: Path) -> list[dict[str, Any]]:
    """Probe every layer of the encoders and both filterbanks, write the table, and return its rows.

    Args:
        encoders: by the name that the table gives them.
        words: folders for `Words.load`.

    Raises:
        UserError: a folder cannot be used, or the table not be written.
    """
    min_samples = max([MIN_SAMPLES, *(encoder.config.min_samples for encoder in encoders.values())])
    probes: dict[tuple[str, str], RunsProbe] = {
        ("words", str(folder)): Words.load(folder, min_samples) for folder in words
    }
    represent = {"log-mel": filterbank(), f"log-mel, +-{CONTEXT} frames": filterbank(CONTEXT)}
    represent |= {name: encoder_layers(encoder) for name, encoder in encoders.items()}
    rows = [
        {"model": name, "layer": layer, "probe": probe, "folder": folder, "measure": measure, "percent": percent}
        for (probe, folder), recordings in probes.items()
        for name, representation in represent.items()
        for measure, percents in _layers(recordings.run(representation, name)).items()
        for layer, percent in enumerate(percents, start=1)
    ]
    write_csv(output, rows)
    return rows


def _layers(row: dict[str, Any]) -> dict[str, list[float]]:
    return row["layers"]
