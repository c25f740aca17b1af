"""Key tables: the parameter names of a format beside ours, for reading and writing."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..config import EncoderConfig
from ..encoder import SpeechEncoder
from ..errors import UserError

WEIGHT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")  # named alike in all formats
MAX_LISTED = 20  # keys that one error names
MAX_SHARED = 2**24  # bytes by which weights that share memory may grow when each gets memory of its own


@dataclass(frozen=True)
class Key:
    """A row of a table. In names `#` is a layer's number and `*` is weight or bias."""

    foreign: str
    ours: str
    foreign_shape: tuple[int, ...] | None = None  # if it differs from ours by axes of length 1


@dataclass(frozen=True)
class KeyTable:
    """All names of a format. Of two rows with the same name of ours, the first is written.

    `ignored` are the names that do not belong to the encoder (training heads, mask embeddings); `**` is anything.
    """

    keys: tuple[Key, ...]
    ignored: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()  # of an encoder inside a larger model

    def to_ours(self, state: Mapping[Any, Any], source: str) -> dict[str, Tensor]:
        """Rename to our names; shapes stay foreign.

        Raises:
            UserError: keys that are neither in the table nor ignored, or two keys for the same parameter.
        """
        renamed: dict[str, Tensor] = {}
        unknown = []
        for name, value in state.items():
            stripped = self._strip(str(name))
            ours = next(filter(None, (_rename(stripped, key.foreign, key.ours) for key in self.keys)), None)
            if ours is None:
                if not any(_regex(pattern).fullmatch(stripped) for pattern in self.ignored):
                    unknown.append(str(name))
            elif ours in renamed:
                raise UserError(f"{source}: key {name:.100} occurs twice under different names")
            else:
                renamed[ours] = value
        if unknown:
            raise UserError(f"{source}: unknown {listed(unknown)}")
        return renamed

    def to_foreign(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename our parameters to theirs.

        Raises:
            KeyError: the format has no name for a parameter.
        """
        renamed = {}
        for name, value in state.items():
            key = next((key for key in self.keys if _rename(name, key.ours, key.foreign)), None)
            if key is None:
                raise KeyError(name)
            shaped = value if key.foreign_shape is None else value.reshape(key.foreign_shape)
            renamed[_rename(name, key.ours, key.foreign)] = shaped.contiguous()
        return renamed

    def foreign_name(self, ours: str) -> str:
        """Their name of a parameter, or ours if they have none."""
        return next(filter(None, (_rename(ours, key.ours, key.foreign) for key in self.keys)), ours)

    def _strip(self, name: str) -> str:
        prefix = next((prefix for prefix in self.prefixes if name.startswith(prefix)), "")
        return name[len(prefix) :]


OUR_TABLE = KeyTable((Key("**", "**"),))  # every name is ours


def build(config: EncoderConfig, state: Mapping[Any, Any], source: str, table: KeyTable = OUR_TABLE) -> SpeechEncoder:
    """The encoder of `config` with the weights of `state`, in float32 and eval mode.

    No memory is allocated for the configuration's shapes before the weights are known to have them.

    Raises:
        UserError: unknown, missing or duplicate keys, a wrong shape or type, values that are not finite.
    """
    with torch.device("meta"):
        encoder = SpeechEncoder(config)
    expected = encoder.state_dict()
    ours = table.to_ours(state, source)
    missing = [table.foreign_name(name) for name in expected if name not in ours]
    if missing:
        raise UserError(f"{source}: missing {listed(missing)}")
    unexpected = [table.foreign_name(name) for name in ours if name not in expected]
    if unexpected:
        raise UserError(f"{source}: unexpected {listed(unexpected)}")
    shown_names = {name: f"{source}: {table.foreign_name(name)}" for name in expected}
    for name, like in expected.items():
        _check(ours[name], tuple(like.shape), shown_names[name])
    _check_shared([ours[name] for name in expected], source)
    weights = {name: _weight(ours[name], tuple(like.shape), shown_names[name]) for name, like in expected.items()}
    encoder.load_state_dict(weights, assign=True)
    return encoder.eval()


def listed(names: Iterable[str]) -> str:
    """'key a' or 'keys a, b and 3 more', each cut to a readable length."""
    names = sorted(names)
    shown = ", ".join(f"{name:.100}" for name in names[:MAX_LISTED])
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"key{'s' * (len(names) > 1)} {shown}{more}"


def _check(value: Any, shape: tuple[int, ...], what: str) -> None:
    """Refuse anything but a dense tensor of floats of `shape`, from which it may differ by axes of length 1."""
    if type(value) not in (Tensor, nn.Parameter) or value.device.type != "cpu":  # a meta tensor has no values
        raise UserError(f"{what} is a {type(value).__name__}, but it must be a tensor with values")
    if value.layout != torch.strided or value.dtype not in WEIGHT_TYPES:
        allowed = ", ".join(str(kind).removeprefix("torch.") for kind in WEIGHT_TYPES)
        kind = str(value.dtype).removeprefix("torch.")
        raise UserError(f"{what} has {kind} values, but they must be dense and one of {allowed}")
    if _without_ones(value.shape) != _without_ones(shape):
        raise UserError(f"{what} has shape {tuple(value.shape)}, but the configuration asks for {shape}")


def _check_shared(values: Iterable[Tensor], source: str) -> None:
    """Refuse weights that share memory to such an extent that a small file would become gigabytes."""
    values = list(values)
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in values}
    stored, claimed = sum(storages.values()), sum(value.numel() * value.element_size() for value in values)
    if claimed > stored + MAX_SHARED:
        raise UserError(f"{source} is refused: its weights have {stored} bytes and claim {claimed}")


def _weight(value: Tensor, shape: tuple[int, ...], what: str) -> Tensor:
    """A checked `value` as a float32 tensor with memory of its own."""
    weight = value.detach().reshape(shape).to(torch.float32, copy=True).contiguous()
    if not bool(weight.isfinite().all()):
        raise UserError(f"{what} has values that are not finite")
    return weight


def _without_ones(shape: Iterable[int]) -> list[int]:
    return [size for size in shape if size != 1]


@cache
def _regex(pattern: str) -> re.Pattern[str]:
    pieces = re.split(r"(\*\*|\*|#)", pattern)
    wild = {"**": r"(.*)", "*": r"(weight|bias)", "#": r"(\d+)"}
    return re.compile("".join(wild.get(piece) or re.escape(piece) for piece in pieces))


def _rename(name: str, pattern: str, into: str) -> str:
    """`name` rewritten if it matches `pattern`, else ''."""
    match = _regex(pattern).fullmatch(name)
    if match is None:
        return ""
    groups = iter(match.groups())
    return re.sub(r"\*\*|\*|#", lambda _: next(groups), into)
