"""Key tables: the parameter names of a foreign format beside ours, read in either direction."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ..config import EncoderConfig
from ..encoder import SpeechEncoder
from ..errors import UserError, shown

WEIGHT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MAX_LISTED = 20  # keys that one error names
MAX_ENTRIES = 2**16  # of one setting, lists within lists counted with all that is in them
MAX_SHARED = 2**24  # bytes by which weights that share memory may grow when each gets its own


@dataclass(frozen=True)
class Key:
    """One line of a table. In a name `#` stands for a layer's number, `*` for weight or bias."""

    foreign: str
    ours: str
    foreign_shape: tuple[int, ...] | None = None  # where it differs from ours by axes of length 1


@dataclass(frozen=True)
class KeyTable:
    """All names of a format. Of two lines with the same name of ours the first is the one written.

    `ignored` lists what belongs to no encoder (training heads, mask embeddings); there `**` stands for anything.
    """

    keys: tuple[Key, ...]
    ignored: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()  # beginnings under which a larger model keeps its encoder

    def to_ours(self, state: Mapping[Any, Any], source: str) -> dict[str, Tensor]:
        """Rename to our names; shapes stay foreign.

        Raises:
            UserError: keys that are neither in the table nor ignored, or two keys for the same parameter.
        """
        renamed: dict[str, Tensor] = {}
        unknown = []
        for name, value in state.items():
            stripped = self._strip(str(name))
            ours = next((found for key in self.keys if (found := _rename(stripped, key.foreign, key.ours))), None)
            if ours is None:
                if not any(_regex(pattern).fullmatch(stripped) for pattern in self.ignored):
                    unknown.append(str(name))
            elif ours in renamed:
                raise UserError(f"{source}: '{name:.100}' is there twice under different names")
            else:
                renamed[ours] = value
        if unknown:
            raise UserError(f"{source}: unknown {listed(unknown)}")
        return renamed

    def to_foreign(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename our parameters to theirs; a parameter that the format has no name for is a KeyError."""
        renamed = {}
        for name, value in state.items():
            key = next((key for key in self.keys if _rename(name, key.ours, key.foreign)), None)
            if key is None:
                raise KeyError(name)
            shaped = value if key.foreign_shape is None else value.reshape(key.foreign_shape)
            renamed[_rename(name, key.ours, key.foreign)] = shaped.contiguous()
        return renamed

    def foreign_name(self, ours: str) -> str:
        """Their name of a parameter of ours, ours where they have none."""
        return next((found for key in self.keys if (found := _rename(ours, key.ours, key.foreign))), ours)

    def _strip(self, name: str) -> str:
        prefix = next((prefix for prefix in self.prefixes if name.startswith(prefix)), "")
        return name[len(prefix) :]


OUR_TABLE = KeyTable((Key("**", "**"),))  # our own folders: every name stands for itself


def build(config: EncoderConfig, state: Mapping[Any, Any], source: str, table: KeyTable = OUR_TABLE) -> SpeechEncoder:
    """The encoder of `config` with the weights of `state`, in float32 and eval mode.

    Nothing of the configuration's size is allocated before the weights are known to have that size.

    Raises:
        UserError: unknown, missing or doubled keys, a wrong shape or type, values that are not finite.
    """
    with torch.device("meta"):
        encoder = SpeechEncoder(config)
    expected = encoder.state_dict()
    found = table.to_ours(state, source)
    missing = [table.foreign_name(name) for name in expected if name not in found]
    if missing:
        raise UserError(f"{source}: missing {listed(missing)}")
    unexpected = [table.foreign_name(name) for name in found if name not in expected]
    if unexpected:
        raise UserError(f"{source}: {listed(unexpected)} that the configuration has no place for")
    places = {name: f"{source}: '{table.foreign_name(name)}'" for name in expected}
    for name, like in expected.items():
        _check(found[name], tuple(like.shape), places[name])
    _check_shared([found[name] for name in expected], source)
    weights = {name: _weight(found[name], tuple(like.shape), places[name]) for name, like in expected.items()}
    encoder.load_state_dict(weights, assign=True)
    return encoder.eval()


def plain_settings(values: Mapping[Any, Any], keys: Iterable[str], source: str) -> dict[str, Any]:
    """Those of `keys` that a configuration has: numbers, text and lists of them, though a pickle may hold anything.

    Raises:
        UserError: a value that no setting can be.
    """
    found = {key: values[key] for key in keys if key in values}
    for key, value in found.items():
        if not _is_plain(value):
            raise UserError(f"{source}: {key} is a {type(value).__name__} that no setting can be")
    return found


def _is_plain(value: Any) -> bool:
    """Whether a setting can be this: a list counts each time that it is named, however small the file."""
    answers = list(islice(_plain(value), MAX_ENTRIES + 1))
    return len(answers) <= MAX_ENTRIES and all(answers)


def _plain(value: Any, depth: int = 3) -> Iterator[bool]:
    """Of a value and of every entry in its lists, whether a setting can hold it."""
    if isinstance(value, (list, tuple)):
        yield depth > 0
        for entry in value if depth > 0 else ():
            yield from _plain(entry, depth - 1)
    else:
        yield value is None or isinstance(value, (bool, int, float, str))


def chosen(value: Any, among: Mapping[str, str], what: str) -> str:
    """Our word for one of a format's.

    Raises:
        UserError: `value`, which may be anything that a file can hold, is none of them.
    """
    if not isinstance(value, str) or value not in among:
        raise UserError(f"{what} is {shown(value)}; allowed are {', '.join(among)}")
    return among[value]


def listed(names: Iterable[str]) -> str:
    """'key a' or 'keys a, b and 3 more', each cut to a readable length."""
    names = sorted(names)
    shown = ", ".join(f"{name:.100}" for name in names[:MAX_LISTED])
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"key{'s' * (len(names) > 1)} {shown}{more}"


def _check(value: Any, shape: tuple[int, ...], what: str) -> None:
    """Refuse what is no dense tensor of floats of `shape`, from which it may differ by axes of length 1."""
    if type(value) not in (Tensor, nn.Parameter) or value.device.type != "cpu":  # a meta tensor has no values
        raise UserError(f"{what} is a {type(value).__name__}, not a tensor with values")
    if value.layout != torch.strided or value.dtype not in WEIGHT_TYPES:
        allowed = ", ".join(str(kind).removeprefix("torch.") for kind in WEIGHT_TYPES)
        raise UserError(f"{what} holds {str(value.dtype).removeprefix('torch.')} values; allowed are dense {allowed}")
    if _without_ones(value.shape) != _without_ones(shape):
        raise UserError(f"{what} has shape {tuple(value.shape)}; the configuration asks for {shape}")


def _check_shared(values: Iterable[Tensor], source: str) -> None:
    """Refuse weights that take much less memory together than each would alone: a small file of terabytes."""
    values = list(values)
    held = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in values}
    claimed = sum(value.numel() * value.element_size() for value in values)
    if claimed > sum(held.values()) + MAX_SHARED:
        raise UserError(f"{source}: refused, its weights hold {sum(held.values())} bytes and claim {claimed}")


def _weight(value: Tensor, shape: tuple[int, ...], what: str) -> Tensor:
    """A checked `value` as a float32 tensor of its own memory."""
    weight = value.detach().reshape(shape).to(torch.float32, copy=True).contiguous()
    if not bool(weight.isfinite().all()):
        raise UserError(f"{what} holds values that are not finite")
    return weight


def _without_ones(shape: Iterable[int]) -> list[int]:
    return [size for size in shape if size != 1]


@cache
def _regex(pattern: str) -> re.Pattern[str]:
    pieces = re.split(r"(\*\*|\*|#)", pattern)
    wild = {"**": r"(.*)", "*": r"(weight|bias)", "#": r"(\d+)"}
    return re.compile("".join(wild.get(piece) or re.escape(piece) for piece in pieces))


def _rename(name: str, pattern: str, into: str) -> str:
    """`name` rewritten when it has the form of `pattern`, else ''."""
    match = _regex(pattern).fullmatch(name)
    if match is None:
        return ""
    groups = iter(match.groups())
    return re.sub(r"\*\*|\*|#", lambda _: next(groups), into)
