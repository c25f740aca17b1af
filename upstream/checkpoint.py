"""Checkpoints: load any supported one; save ours (config.json and model.safetensors) atomically."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save as to_safetensors

from .config import EncoderConfig
from .encoder import SpeechEncoder
from .errors import UserError
from .files import disk_errors, sync_directory, write_synced
from .formats import dphubert, fairseq, huggingface, starhubert
from .formats.files import read_json, read_safetensors, read_torch, refuse_configuration
from .formats.keys import build
from .hub import model_folder

FILE_FORMATS = (starhubert, dphubert, fairseq)
CONFIG, WEIGHTS = "config.json", "model.safetensors"
SUFFIXES = {".json", ".safetensors", ".md", ".png", ".py"}  # of the files in such folders


def load(path_or_name: str | Path, model_config: str | Path | None = None) -> SpeechEncoder:
    """Open a checkpoint, recognised by its content, as a float32 encoder in eval mode.

    The encoder takes wavs in one piece; `chunked.chunks(encoder, waveform)` computes long ones in bounded memory.

    Args:
        path_or_name: one of our folders, a Hugging Face folder of any of `FAMILIES` or hub name ORG/NAME, or a file of
            STaR (.ckpt), DPHuBERT (.pth), fairseq or s3prl (.pt).
        model_config: the .yaml of a STaR checkpoint, unless it is beside it with the same stem.

    Raises:
        UserError: the path does not exist, the format is unknown, or anything in the checkpoint is wrong.
    """
    path = existing_checkpoint(Path(path_or_name)) or model_folder(str(path_or_name))
    if path.name in (CONFIG, WEIGHTS):
        path = path.parent
    if not path.is_dir():
        return _load_file(path, None if model_config is None else Path(model_config))
    refuse_configuration(path, model_config)
    config = path / CONFIG
    if not config.exists():
        raise UserError(f"{path} is not a checkpoint: it contains no {CONFIG}")
    values = read_json(config)
    if huggingface.matches(values):
        return huggingface.read(path, values)
    return build(EncoderConfig.from_dict(values, str(config)), read_safetensors(path / WEIGHTS), str(path / WEIGHTS))


def _load_file(path: Path, model_config: Path | None) -> SpeechEncoder:
    content = read_torch(path)
    for file_format in FILE_FORMATS:
        if file_format.matches(content):
            return file_format.read(content, path, model_config)
    known = "; ".join(file_format.NAME for file_format in FILE_FORMATS)
    keys = ", ".join(sorted(f"{key!s:.30}" for key in content)[:8]) or "no keys"
    raise UserError(f"{path} is an unknown kind of checkpoint with {keys}; known files are {known}")


def save(
    encoder: SpeechEncoder,
    directory: str | Path,
    extra_files: Mapping[str, bytes | str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write config.json, model.safetensors and `extra_files` (name -> content) as a folder; see `write_folder`.

    Args:
        dtype: of the stored weights; `load` always returns float32.

    Raises:
        UserError: the weights are not finite in `dtype`, or as `write_folder`.
    """
    state = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in encoder.state_dict().items()}
    not_finite = [name for name, tensor in state.items() if not bool(tensor.isfinite().all())]
    if not_finite:
        raise UserError(f"{directory} is not written: {not_finite[0]} is not finite in {dtype}")
    config = json.dumps(encoder.config.to_dict(), indent=1) + "\n"
    write_folder(directory, {**(extra_files or {}), CONFIG: config, WEIGHTS: to_safetensors(state)})


def write_folder(directory: str | Path, files: Mapping[str, bytes | str]) -> None:
    """Write a folder with a config.json and other files atomically, replacing an earlier one.

    A replacement takes two renames. After a kill between them the earlier folder has another name, under which
    `existing_checkpoint` still finds it, and the next call puts it back.

    Raises:
        UserError: the directory contains something else, a name is not a plain file name, or the disk refuses.
    """
    target = Path(directory).resolve()
    writing, replaced = target.with_name(f".{target.name}.writing"), _replaced(target)
    other = _other_content(target, files)
    if other is not None:
        raise UserError(f"{directory} is not replaced: it contains {other.name}, which does not belong to a checkpoint")
    for name in files:
        if Path(name).name != name:
            raise UserError(f"{directory}: '{name}' is not a plain file name")
    try:
        with disk_errors(Path(directory), "written"):
            target.parent.mkdir(parents=True, exist_ok=True)
            if replaced.exists() and not target.exists():
                replaced.rename(target)
            for leftover in (writing, replaced):
                _remove(leftover)
            writing.mkdir()
            for name, content in files.items():
                write_synced(writing / name, content.encode() if isinstance(content, str) else content)
            sync_directory(writing)
            if target.exists():
                target.rename(replaced)
            writing.rename(target)
            sync_directory(target.parent)
            _remove(replaced)
    except UserError:
        shutil.rmtree(writing, ignore_errors=True)  # frees a full disk
        raise


def existing_checkpoint(path: Path) -> Path | None:
    """`path` if it exists, else the earlier folder that a killed `write_folder` left beside it, else None.

    Raises:
        UserError: a name that no file can have, or a folder without permission.
    """
    with disk_errors(path, "opened"):
        try:
            replaced = _replaced(path.resolve()) if path.name else path
            return next((place for place in (path, replaced) if place.exists()), None)
        except (RuntimeError, ValueError):  # circular links, a zero byte
            raise UserError(f"{path} is not the name of a file or folder") from None


def _other_content(target: Path, names: Mapping[str, object]) -> Path | None:
    """Something at `target` that does not belong to a checkpoint folder, or None."""
    if not target.is_dir():
        return target if target.exists() else None
    entries = sorted(target.iterdir())
    if entries and target / CONFIG not in entries:
        return entries[0]
    known = [entry for entry in entries if entry.is_file() and (entry.name in names or entry.suffix in SUFFIXES)]
    return next((entry for entry in entries if entry not in known), None)


def _replaced(target: Path) -> Path:
    return target.with_name(f".{target.name}.replaced")


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
