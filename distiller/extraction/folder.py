"""The folder of a corpus's features: its files, and how to read them.

    index.json                          the settings, the encoder, the times of frames, and every utterance's file
    PATH/OF/THE/AUDIO.npy               an utterance's features, or
    features.000000.safetensors | .h5   those of many utterances, each by its name

Features are (frame, channel), or (layer, frame, channel) if several layers are kept. The convolutions of frame t see
receptive_field seconds of audio around first_centre + t * frame_shift.
"""

import hashlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from distiller.audio.formats import AUDIO
from distiller.common.files import expanded, write_with
from distiller.extraction.work import read_json
from upstream.errors import UserError

VERSION = 1  # increase when the same settings would give different features
INDEX = "index.json"


def file_names(ids: Sequence[str]) -> list[str]:
    """A name for each of several distinct ids, as a path without the audio's suffix: "a/b.wav" becomes a/b.

    Leading dots are removed, so that every name stays in the folder and is visible. An id whose name is taken, or is
    a folder of another name, keeps its suffix or gets a digest.
    """
    names: dict[str, None] = {}
    folders: set[str] = set()
    for one in ids:
        readable = "".join(char if char.isprintable() else "_" for char in one)
        whole = "/".join(filter(None, (part.lstrip(".") for part in readable.split("/")))) or "utterance"
        ending = next((ending for ending in AUDIO if whole.lower().endswith(ending)), "")
        digest = hashlib.sha256(one.encode(errors="backslashreplace")).hexdigest()[:16]
        for name in (whole[: len(whole) - len(ending)], whole, f"{whole.replace('/', '-')}-{digest}"):
            above = set(_folders(name))
            if name not in names and name not in folders and not above & names.keys():
                break
        names[name] = None
        folders |= above
    return list(names)


def _folders(name: str) -> Iterator[str]:
    parts = name.split("/")
    return ("/".join(parts[:count]) for count in range(1, len(parts)))


def check_format(kind: str) -> None:
    """Raises: UserError: the library that writes this format is missing."""
    if kind == "hdf5" and importlib.util.find_spec("h5py") is None:
        raise UserError("--format is 'hdf5', which needs h5py; install it (pip install h5py), or choose another")


def write_features(folder: Path, kind: str, part: int, features: Mapping[str, Tensor]) -> list[str]:
    """Write features by name, atomically; returns each one's file, relative to the folder."""
    if kind == "npy":
        files = [f"{name}.npy" for name in features]
        for file, values in zip(files, features.values(), strict=True):
            write_with(folder / file, lambda path, values=values: np.save(path, values.numpy()))
        return files
    ending, write = _SHARDS[kind]
    file = f"features.{part:06d}{ending}"
    write_with(folder / file, lambda path: write(features, path))
    return [file] * len(features)


def _write_hdf5(features: Mapping[str, Tensor], path: Path) -> None:
    import h5py  # an optional dependency

    with h5py.File(path, "w") as file:
        for name, values in features.items():
            file.create_dataset(name, data=values.numpy())


def _write_safetensors(features: Mapping[str, Tensor], path: Path) -> None:
    save_file(dict(features), path)


_SHARDS: dict[str, tuple[str, Callable[[Mapping[str, Tensor], Path], None]]] = {
    "safetensors": (".safetensors", _write_safetensors),
    "hdf5": (".h5", _write_hdf5),
}


def is_features(folder: Path) -> bool:
    """Whether the folder holds the features of a corpus."""
    return (folder / INDEX).is_file()


class FeatureFolder(Mapping[str, Tensor]):
    """The features of a corpus by utterance id, in the order of the corpus; each is read on access.

    Raises:
        UserError: the folder does not hold features, they are not complete, or a file is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = expanded(folder)
        if not is_features(self.folder):
            raise UserError(f"{folder} holds no complete features; make them with `python distiller/features.py`")
        self.index: dict[str, Any] = read_json(self.folder / INDEX)
        if self.index.get("version") != VERSION:
            raise UserError(f"{folder} has format version {self.index.get('version')}, not {VERSION}; extract it again")
        self.rows = {row["id"]: row for row in self.index["utterances"]}

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __getitem__(self, utterance: str) -> Tensor:
        row = self.rows[utterance]
        path, name = self.folder / row["file"], row["name"]
        try:
            if path.suffix == ".npy":
                return torch.from_numpy(np.load(path))
            if path.suffix == ".safetensors":
                with safe_open(path, "pt") as file:
                    return file.get_tensor(name)
            import h5py  # an optional dependency

            with h5py.File(path, "r") as file:
                return torch.from_numpy(np.asarray(file[name]))
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise UserError(f"{path} is missing or damaged; remove {self.folder} and extract it again") from error
