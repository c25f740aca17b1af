"""Reading files that may be damaged or hostile: size limits, no code, and a one-line error for whatever is wrong."""

import argparse
import io
import json
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import UserError, first_line
from ..files import disk_errors, parse_errors

MAX_TEXT_BYTES = 2**20  # configurations are a few kB
MAX_PICKLE_BYTES = 2**26  # the part of a checkpoint that is not tensors
ARCHIVE, PICKLE = b"PK\x03\x04", b"\x80"  # the first bytes of what torch.save writes, now and in older versions


class Inert:
    """Stand-in for classes whose instances old checkpoints contain: it has their attributes and does nothing."""


# What fairseq's checkpoints contain besides tensors and plain containers.
INERT_GLOBALS = [(Inert, "fairseq.data.dictionary.Dictionary"), (argparse.Namespace, "argparse.Namespace")]

# All that a pickle may name. torch allows more, some of which turns a few bytes into gigabytes: bytearray(2**32),
# torch.Tensor(2**32), a text encoded in hexadecimal 32 times, a set of a tensor that repeats one number.
KNOWN_GLOBAL = re.compile(
    "|".join(
        [
            *(re.escape(name) for _, name in INERT_GLOBALS),
            r"collections\.(OrderedDict|Counter)",
            r"torch\._utils\._rebuild_(tensor|tensor_v2|parameter|parameter_with_state)",
            r"torch\._utils\._rebuild_(sparse_tensor|meta_tensor_no_storage|qtensor)",  # refused later, as weights
            r"torch\.serialization\._get_layout",
            r"torch\.nn\.parameter\.Parameter",
            r"torch\.[A-Z][A-Za-z0-9]*Storage",
            r"torch\.(Size|device|u?int\d+|float\w*|bfloat16|complex\d+|bool|q?u?int\d+\w*|per_\w+)",
        ]
    )
)
LEGACY_PICKLES = 5  # of a file in the former format: a number, a version, the system, the content, the tensors' names


def refuse_configuration(path: Path, model_config: str | Path | None) -> None:
    """Raises: UserError: a configuration file is given for a checkpoint that contains its configuration."""
    if model_config is not None:
        raise UserError(f"{path} contains its configuration; remove the model_config argument ({model_config})")


def read_text(path: Path) -> str:
    """The content of a small UTF-8 file.

    Raises:
        UserError: missing, unreadable, too large, not UTF-8.
    """
    with disk_errors(path, "read"), path.open("rb") as file:
        content = file.read(MAX_TEXT_BYTES + 1)
    if len(content) > MAX_TEXT_BYTES:
        raise UserError(f"{path} has more than {MAX_TEXT_BYTES} bytes, too many for a configuration")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: as `read_text`, or not a JSON object.
    """
    return _mapping(path, "JSON", json.loads)


class _SafeLoader(yaml.SafeLoader):
    """No tags beyond plain data, and no merge keys, which can grow exponentially."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.constructor.ConstructorError(
                problem="merge keys are not supported", problem_mark=node.start_mark
            )


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping of plain data.

    Raises:
        UserError: as `read_text`, or tags, merge keys, not a YAML mapping.
    """
    return _mapping(path, "plain YAML", lambda text: yaml.load(text, Loader=_SafeLoader))


def _mapping(path: Path, kind: str, parse: Callable[[str], Any]) -> dict[str, Any]:
    text = read_text(path)
    with parse_errors(path, kind):
        values = parse(text)
    if not isinstance(values, dict):
        raise UserError(f"{path} contains a {type(values).__name__}, but it must contain keys and values")
    return values


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        UserError: missing, truncated or otherwise not safetensors.
    """
    with disk_errors(path, "read"):
        path.open("rb").close()  # safe_open reports a file without permission as missing
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        except (SafetensorError, ValueError, TypeError, OverflowError) as error:
            raise UserError(f"{path} is not a complete safetensors file ({first_line(error)})") from None


def read_torch(path: Path) -> dict[str, Any]:
    """The content of a file written by `torch.save`: tensors and plain containers only, no code in it is run.

    Raises:
        UserError: missing, truncated, not a checkpoint, or with a pickle that asks for anything else.
    """
    try:
        with disk_errors(path, "read"):
            is_archive = _check_torch(path)
            with torch.serialization.safe_globals(INERT_GLOBALS):
                # mapped, so that a record shorter than its tensor claims is never read beyond the file
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is refused: its pickle is not weights only ({_reason(error)})") from None
    except UserError:
        raise
    except Exception as error:  # a damaged file raises whatever its bytes happen to lead to
        raise UserError(f"{path} is not a complete PyTorch checkpoint ({first_line(error)})") from None
    if not isinstance(content, Mapping):
        raise UserError(f"{path} contains a {type(content).__name__}, not a dictionary of weights")
    return dict(content)


def _check_torch(path: Path) -> bool:
    """Check everything that can be checked before a file is loaded; returns whether it is an archive."""
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        if start == ARCHIVE:
            _check_archive(path)
            # by torch's own reader, so that the pickle that is checked is the one that will be opened
            pickled = io.BytesIO(torch._C.PyTorchFileReader(str(path)).get_record("data.pkl"))
            _check_globals(path, pickled, pickles=1)
        elif start[:1] == PICKLE:
            _check_globals(path, file, LEGACY_PICKLES)
        else:
            raise UserError(f"{path} is not a PyTorch checkpoint: it begins with neither an archive nor a pickle")
    return start == ARCHIVE


def _check_archive(path: Path) -> None:
    """torch.save stores its records uncompressed under one folder; anything else could unpack to any size."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    for record in records:
        name, shown = PurePosixPath(record.filename), f"'{record.filename:.80}'"
        if name.is_absolute() or ".." in name.parts:
            raise UserError(f"{path} is refused: its archive contains the path {shown}")
        if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size:
            raise UserError(f"{path} is refused: {shown} in its archive is compressed")
        if name.suffix == ".pkl" and record.file_size > MAX_PICKLE_BYTES:
            raise UserError(f"{path} is refused: {shown} in its archive has more than {MAX_PICKLE_BYTES} bytes")
    if sum(record.file_size for record in records) > path.stat().st_size:
        raise UserError(f"{path} is refused: its archive claims more bytes than the file has")


def _check_globals(path: Path, file: IO[bytes], pickles: int) -> None:
    """Refuse pickles that name anything which checkpoints do not need, before any of them is run."""
    for _ in range(pickles):
        for opcode, argument, _ in pickletools.genops(file):
            name = str(argument).replace(" ", ".")
            if opcode.name == "GLOBAL" and not KNOWN_GLOBAL.fullmatch(name):
                raise UserError(f"{path} is refused: its pickle is not weights only (it names {name:.80})")


def _reason(error: pickle.UnpicklingError) -> str:
    """What torch's unpickler refused, without its advice on how to load the file anyway."""
    lines = [line for line in str(error).splitlines() if "GLOBAL" in line or "WeightsUnpickler error" in line]
    return lines[0].removeprefix("\tWeightsUnpickler error: ")[:200] if lines else first_line(error)
