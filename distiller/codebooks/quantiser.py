"""A codebook for a model: k-means of one layer, fitted on features or a corpus, in its own folder.

The folder is as in `distiller.codebooks.folder`, without shards, and targets.json names the model. A folder inside the
model's names it by a relative path, so that the two can be moved together.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from distiller.audio.decoding import Decoder
from distiller.audio.skipped import Skipped
from distiller.codebooks.codebook import normalised
from distiller.codebooks.config import UnitsConfig
from distiller.codebooks.fitting import fit_codebook, fit_on_corpus, sampled
from distiller.codebooks.folder import SETTINGS, VERSION, read_codebook, read_settings, write_codebook
from distiller.common.files import expanded, lock_folder, sweep, write_json
from distiller.common.progress import progress
from distiller.common.values import difference
from distiller.corpora.corpus import all_audio
from distiller.extraction.folder import FeatureFolder, is_features
from distiller.extraction.forward import Pace, short_enough
from distiller.extraction.work import check_settings
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError, require


@dataclass(frozen=True)
class Quantiser:
    """An opened folder."""

    config: UnitsConfig
    codebook: dict[str, Tensor]
    identity: dict[str, Any]  # of the encoder
    model: str | None  # where the encoder is; None if the folder does not say

    def check(self, model: str, identity: dict[str, Any]) -> None:
        """Raises: UserError: the encoder, called `model`, is not the one that the units were fitted on."""
        if other := difference(self.identity, {key: identity.get(key) for key in self.identity}):
            raise UserError(f"--model is {model}, but the units were fitted on a different model: {other}")


def fit_quantiser(
    config: UnitsConfig,
    encoder: SpeechEncoder,
    identity: dict[str, Any],
    model: str,
    source: str,
    subsets: list[str],
    output: Path,
    pace: Pace,
) -> list[Skipped]:
    """Fit k-means on the features in a folder, or on a corpus, and write it.

    Args:
        config: of one layer and stage.
        encoder: in eval mode, on the device of `pace`; it has the layer. `model` is its name.
        source: a folder of features, or a corpus as `all_audio`.

    Returns:
        The audio that could not be used.

    Raises:
        UserError: features of another encoder or layer; `output` holds units with other settings; too few frames.
    """
    skipped: list[Skipped] = []
    if is_features(expanded(source)):
        seconds, fit = _on_features(config, FeatureFolder(source), identity)
    else:
        cuts, skipped = all_audio(source, subsets, Decoder(encoder.config.min_samples))
        cuts = short_enough(encoder, cuts, skipped)
        seconds, fit = [cut.duration for cut in cuts], partial(fit_on_corpus, config, encoder, cuts, pace, skipped)
    settings = {
        "version": VERSION,
        "teacher": identity,
        "corpus": {"utterances": len(seconds), "seconds": round(sum(seconds), 2)},
        "streams": config.streams,
        **config.to_dict(),
    }
    with lock_folder(output):
        sweep(output)
        if (output / SETTINGS).exists():
            check_settings(output, read_settings(output), settings)
            return skipped
        write_codebook(output, fit())
        write_json(output / SETTINGS, settings | {"model": located(model, output)})
    return skipped


def _on_features(
    config: UnitsConfig, features: FeatureFolder, identity: dict[str, Any]
) -> tuple[list[float], Callable[[], dict[str, Tensor]]]:
    """Seconds of each utterance, and a function that fits the codebook on them."""
    index, (layer,) = features.index, config.layers
    if other := difference({key: index["encoder"].get(key) for key in identity}, identity):
        raise UserError(f"{features.folder} contains features of a different model than --model: {other}")
    kept = index["layers"] if not (index["mean"] or index["weights"]) else []
    if layer not in kept or (layer == 0 and index["layer_zero"] != config.layer_zero):
        held = f"layers {kept}, 0 being {index['layer_zero']}" if kept else "a sum of layers"
        raise UserError(f"--layer is {layer}, but {features.folder} holds {held}")
    rows = list(features.rows.values())
    chosen = [rows[number] for number in sampled([row["frames"] for row in rows], config)]
    chosen = sorted(chosen, key=lambda row: (row["seconds"], row["id"]))  # in the order of `forward` for a corpus

    def fit() -> dict[str, Tensor]:
        read = progress((features[row["id"]] for row in chosen), "Reading features", len(chosen))
        states = (values if values.ndim == 2 else values[kept.index(layer)] for values in read)
        return fit_codebook(config, (normalised(frames, config.norm)[:, None] for frames in states))

    return [row["seconds"] for row in rows], fit


def located(model: str, folder: Path) -> str:
    """A name of the model valid in any folder: its path (relative to `folder` if that is inside it), or `model`."""
    path = expanded(model).absolute()
    if not path.exists():
        return model
    return os.path.relpath(path, folder.absolute()) if path in folder.absolute().parents else str(path)


def open_quantiser(folder: Path) -> Quantiser:
    """Open a folder of `units.py fit`, or one of `targets.py` for one layer and stage.

    Raises:
        UserError: it is missing, damaged, or has several streams.
    """
    settings = read_settings(folder)
    streams = settings["streams"]
    require(
        len(streams) == 1,
        "--units",
        str(folder),
        f"a folder of units of one layer and stage; its streams are {streams}",
    )
    config = UnitsConfig(**{field.name: settings[field.name] for field in fields(UnitsConfig)})
    model = settings.get("model")
    if model is not None and model.split(os.sep)[0] == os.pardir:
        model = os.path.normpath(folder / model)
    return Quantiser(config, read_codebook(folder), settings["teacher"], model)
