"""Checkpoints: open any supported one, write ours (config.json + model.safetensors) whole or not at all."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save as to_safetensors

from .config import EncoderConfig
from .encoder import SpeechEncoder
from .errors import UserError
from .files import sync_directory, write_synced
from .formats import FILE_FORMATS, huggingface
from .formats.files import read_json, read_safetensors, read_torch
from .formats.keys import build

CONFIG, WEIGHTS = "config.json", "model.safetensors"
SUFFIXES = {".json", ".safetensors", ".md", ".png", ".py"}  # of what such folders hold


def load(path_or_name: str | Path, model_config: str | Path | None = None) -> SpeechEncoder:
    """Open a checkpoint, recognised from its content, as a float32 encoder in eval mode.

    Args:
        path_or_name: a folder of ours or of Hugging Face (HuBERT, WavLM, wav2vec 2.0), a hub name ORG/NAME, or a file
            of STaR (.ckpt), DPHuBERT (.pth), fairseq or s3prl (.pt).
        model_config: the .yaml of a STaR checkpoint, where it does not lie beside it under the same stem.

    Raises:
        UserError: nothing there, an unknown format, or whatever is wrong with it, in one sentence.
    """
    path = finished(Path(path_or_name))
    if path is None:
        path = _download(str(path_or_name))
    if path.name in (CONFIG, WEIGHTS):
        path = path.parent
    if not path.is_dir():
        return _load_file(path, None if model_config is None else Path(model_config))
    if model_config is not None:
        raise UserError(f"{path}: brings its own configuration; {model_config} has no use here")
    return _load_folder(path)


def save(
    encoder: SpeechEncoder,
    directory: str | Path,
    extra_files: Mapping[str, bytes | str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write config.json, model.safetensors and `extra_files` (name -> content) as one folder, whole or not at all.

    An existing checkpoint is replaced as a whole. At any moment either the old or the new one can be opened by
    `load`, also after a kill between the two renames that a replacement takes.

    Args:
        dtype: how the weights are stored; `load` gives float32 whatever it is.

    Raises:
        UserError: the directory holds something else, the weights are not finite in `dtype`, or the disk refuses.
    """
    state = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in encoder.state_dict().items()}
    not_finite = [name for name, tensor in state.items() if not bool(tensor.isfinite().all())]
    if not_finite:
        raise UserError(f"{directory}: not written, {not_finite[0]} is not finite in {dtype}")
    config = json.dumps(encoder.config.to_dict(), indent=1) + "\n"
    write_folder(directory, {**(extra_files or {}), CONFIG: config, WEIGHTS: to_safetensors(state)})


def write_folder(directory: str | Path, files: Mapping[str, bytes | str]) -> None:
    """Write a folder that holds a config.json and other files, whole or not at all, replacing an earlier one.

    Raises:
        UserError: the directory holds something that is no such folder, a name is no plain file name, or the disk
            refuses.
    """
    target = Path(directory).resolve()
    writing, complete, replaced = (_sibling(target, stage) for stage in ("writing", "complete", "replaced"))
    foreign = _foreign(target, files)
    if foreign is not None:
        raise UserError(f"{directory}: not replaced, it holds something that is no checkpoint ({foreign.name})")
    for name in files:
        if Path(name).name != name:
            raise UserError(f"{directory}: '{name}' is not a plain file name")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _finish_replacement(target)
        _remove(writing)
        writing.mkdir()
        for name, content in files.items():
            write_synced(writing / name, content.encode() if isinstance(content, str) else content)
        sync_directory(writing)
        writing.rename(complete)  # from here on nothing of the new checkpoint can be lost
        sync_directory(target.parent)
        if target.exists():
            target.rename(replaced)
        complete.rename(target)
        sync_directory(target.parent)
        _remove(replaced)
    except OSError as error:
        shutil.rmtree(writing, ignore_errors=True)  # a full disk gets its space back
        raise UserError(f"{directory}: cannot be written ({error.strerror or error})") from None


def _foreign(target: Path, files: Mapping[str, bytes | str]) -> Path | None:
    """Something there that no such folder holds, or None."""
    if not target.exists():
        return None
    if not target.is_dir():
        return target
    entries = sorted(target.iterdir())
    known = [entry for entry in entries if entry.is_file() and (entry.name in files or entry.suffix in SUFFIXES)]
    others = [entry for entry in entries if entry not in known]
    return others[0] if others else None if not entries or (target / CONFIG) in entries else entries[0]


def finished(directory: Path) -> Path | None:
    """Where a checkpoint stands: `directory`, or the complete folder beside it that a killed `save` left; else None.

    Raises:
        UserError: a name that no file can have, or a folder that may not be looked into.
    """
    try:
        if directory.exists():
            return directory
        complete = _sibling(directory.resolve(), "complete")
        return complete if directory.name and complete.exists() else None
    except OSError as error:
        raise UserError(f"{directory}: cannot be opened ({error.strerror})") from None
    except (RuntimeError, ValueError):  # links in a circle, a zero byte
        raise UserError(f"{directory}: not the name of a file or folder") from None


def _finish_replacement(target: Path) -> None:
    """What a killed `write_folder` still had to do."""
    complete, replaced = _sibling(target, "complete"), _sibling(target, "replaced")
    if complete.exists():
        if target.exists():
            _remove(replaced)
            target.rename(replaced)
        complete.rename(target)
    if target.exists():
        _remove(replaced)


def _sibling(target: Path, stage: str) -> Path:
    return target.parent / f".{target.name}.{stage}"


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


def _load_folder(folder: Path) -> SpeechEncoder:
    path = folder / CONFIG
    if not path.exists():
        raise UserError(f"{folder}: no {CONFIG} in it")
    values = read_json(path)
    if huggingface.matches(values):
        return huggingface.read(folder, values)
    config = EncoderConfig.from_dict(values, str(path))
    return build(config, read_safetensors(folder / WEIGHTS), str(folder / WEIGHTS))


def _load_file(path: Path, model_config: Path | None) -> SpeechEncoder:
    content = read_torch(path)
    for file_format in FILE_FORMATS:
        if file_format.matches(content):
            return file_format.read(content, path, model_config)
    known = "; ".join(file_format.NAME for file_format in FILE_FORMATS)
    found = ", ".join(sorted(f"{key!s:.30}" for key in content)[:8]) or "nothing"
    raise UserError(f"{path}: an unknown kind of checkpoint, it holds {found}; known files are {known}")


def _download(name: str) -> Path:
    """A model of the Hugging Face hub, from the local cache when it is there."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"{name}: no such file or folder, and not a hub name of the form ORG/NAME")
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError:
        raise UserError(f"{name}: no such file or folder, and without huggingface_hub no hub name either") from None

    def fetch(file: str) -> Path | None:
        try:
            return Path(hf_hub_download(name, file))
        except EntryNotFoundError:
            return None

    try:
        config = fetch(CONFIG)
        if config is not None:
            fetch("preprocessor_config.json")
            found = next((file for file in huggingface.WEIGHTS if fetch(file)), "")
            if found.endswith(".index.json"):
                for shard in huggingface.shards(config.parent / found):
                    fetch(shard)
            return config.parent
    except (OSError, ValueError) as error:
        reason = type(error).__name__
    else:
        reason = "not in the cache, and the hub has no such file or cannot be reached"
    raise UserError(f"{name}: no such file or folder, and no model of the Hugging Face hub ({reason})")
