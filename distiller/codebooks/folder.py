"""The folder of a corpus's units: its files, and how to read them.

    targets.json                 the settings, and the number of shards once every utterance has its units
    codebook.safetensors         layer.L: (stage, unit, channel) centroids, float32
    units.000000.safetensors     units: (frame, stream) uint8 or uint16 of many utterances, one after the other;
                                 lengths: (utterance,) frames of each; their ids are in the metadata

A stream is a stage of a layer: layers in order, the stages of each together. Every file is written atomically, so one
that exists is complete.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from distiller.common.files import expanded, writing
from upstream.errors import UserError

VERSION = 1  # increase when the same settings would give different units
SURPLUS = 2  # frames that Whisper has beyond those of a convolutional student (`objectives.alignment`)
SETTINGS, CODEBOOK = "targets.json", "codebook.safetensors"
MAKE = "make them with `python distiller/targets.py CORPUS --output FOLDER`"
DAMAGED = (OSError, ValueError, KeyError, TypeError, SafetensorError)


def shard_path(folder: Path, index: int) -> Path:
    """The file of shard number `index`."""
    return folder / f"units.{index:06d}.safetensors"


def read_settings(folder: Path) -> dict[str, Any]:
    """The content of targets.json.

    Raises:
        UserError: it is missing, damaged, or of another version.
    """
    path = folder / SETTINGS
    if not path.is_file():
        raise UserError(f"{folder} holds no units; {MAKE}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values["version"]
    except DAMAGED as error:
        raise UserError(f"{path} is damaged; remove {folder} and {MAKE}") from error
    if version != VERSION:
        raise UserError(f"{folder} has format version {version}, not {VERSION}; {MAKE}")
    return values


def write_shard(path: Path, ids: Sequence[str], units: Sequence[Tensor], streams: int, dtype: torch.dtype) -> None:
    """Write the units, each (frame, stream), of some utterances."""
    together = torch.cat([torch.zeros(0, streams, dtype=torch.int64), *units]).to(dtype)
    lengths = torch.tensor([len(rows) for rows in units], dtype=torch.int64)
    with writing(path) as temporary:
        temporary.write_bytes(save({"units": together, "lengths": lengths}, {"ids": json.dumps(list(ids))}))


class UnitFolder:
    """The units of a corpus, in memory (one or two bytes for each frame and stream).

    Raises:
        UserError: the folder holds no units, is incomplete, or is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = expanded(folder)
        self.settings = read_settings(self.folder)
        shards = self.settings.get("shards")
        if shards is None:
            raise UserError(f"{folder} is not complete; run the same `targets.py` again to continue")
        self.units: dict[str, Tensor] = {}
        for index in range(shards):
            path = shard_path(self.folder, index)
            try:
                with safe_open(path, "pt") as file:
                    ids = json.loads(file.metadata()["ids"])
                    rows = file.get_tensor("units").split(file.get_tensor("lengths").tolist())
                self.units |= dict(zip(ids, rows, strict=True))
            except DAMAGED as error:
                raise UserError(f"{path} is missing or damaged; run the same `targets.py` again") from error

    def codebook(self) -> list[Tensor]:
        """The centroids of each stream, (unit, channel)."""
        tensors = read_codebook(self.folder)
        return [stage for layer in self.settings["layers"] for stage in tensors[f"layer.{layer}"]]

    def identity(self) -> dict[str, Any]:
        """What identifies these units, wherever they are."""
        content = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode())
        for stream in self.codebook():
            content.update(stream.numpy().tobytes())
        return {"utterances": len(self.units), "sha256": content.hexdigest()[:16]}

    def batch(self, ids: Sequence[str], lengths: Sequence[int], frames: int) -> Tensor:
        """Units of a batch, (batch, frame, stream) int64; 0 where padded.

        Raises:
            UserError: an utterance has no units, or a different number of units than frames.
        """
        result = torch.zeros(len(lengths), frames, len(self.settings["streams"]), dtype=torch.int64)
        for row, name, length in zip(result, ids, lengths, strict=False):  # no ids: a batch for measuring memory
            units = self.units.get(name)
            if units is None or not 0 <= len(units) - length <= SURPLUS:
                found = "has no units" if units is None else f"has {len(units)} frames of units, not {length},"
                same = "the corpus, --subsets, --longest and --window-seconds of the run's corpus section"
                raise UserError(f"utterance {name} {found} in {self.folder}; run targets.py with {same}")
            row[:length] = units[:length].long()
        return result


def write_codebook(folder: Path, codebook: dict[str, Tensor]) -> None:
    """Write codebook.safetensors."""
    with writing(folder / CODEBOOK) as temporary:
        temporary.write_bytes(save(codebook))


def read_codebook(folder: Path) -> dict[str, Tensor]:
    """The content of codebook.safetensors. Raises: UserError: it is missing or damaged."""
    try:
        return load_file(folder / CODEBOOK)
    except DAMAGED as error:
        raise UserError(f"{folder / CODEBOOK} is missing or damaged; remove {folder} and {MAKE}") from error
