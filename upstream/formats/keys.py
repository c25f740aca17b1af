"""Key tables: what a format calls our parameters, for reading and writing."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ..config import EncoderConfig
from ..encoder import SpeechEncoder
from ..errors import UserError

WEIGHT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MAX_LISTED = 20  # keys listed in one error
MAX_SHARED = 2**24  # bytes by which weights that share memory may grow when each gets its own

# Endings and parts of names that have two spellings: torch's weight norm, and fairseq's norms in the extractor.
SPELLINGS = {
    r"\.parametrizations\.weight\.original0$": ".weight_g",
    r"\.parametrizations\.weight\.original1$": ".weight_v",
    r"(\bconv_layers\.\d+\.2)\.1\.": r"\1.",  # a layer norm, between two transpositions; a group norm is alone
}


@dataclass(frozen=True)
class KeyTable:
    """How a format names our parameters.

    names: beginnings of our names and of theirs, where # is a layer's number; the longest beginning counts.
    ignored: their names that do not belong to the encoder (training heads, mask embeddings); * is anything.
    prefixes: of an encoder inside a larger model.
    """

    names: Mapping[str, str]
    ignored: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()

    def theirs(self, ours: str) -> str:
        """Their name of a parameter."""
        layer = "".join(re.findall(r"\.(\d+)\.", ours))
        general = re.sub(r"\.\d+\.", ".#.", ours)
        beginning = max(filter(general.startswith, self.names), key=len)
        return (self.names[beginning] + general.removeprefix(beginning)).replace("#", layer)

    def to_foreign(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our parameters under their names."""
        return {self.theirs(name): value for name, value in state.items()}

    def to_ours(self, state: Mapping[Any, Any], wanted: Iterable[str], source: str) -> dict[str, Any]:
        """The `wanted` parameters of ours in their `state`; shapes and types stay theirs.

        Raises:
            UserError: missing keys, keys that are neither wanted nor ignored, or two keys for the same parameter.
        """
        keys: dict[str, Any] = {}
        for key in state:
            plain = self._plain(str(key))
            if plain in keys:
                raise UserError(f"{source}: key {key!s:.100} occurs twice under different names")
            keys[plain] = key
        theirs = {name: self.theirs(name) for name in wanted}
        missing = [name for name in theirs.values() if self._plain(name) not in keys]
        if missing:
            raise UserError(f"{source}: missing {listed(missing)}")
        found = {ours: state[keys.pop(self._plain(name))] for ours, name in theirs.items()}
        others = [plain for plain in keys if not any(fnmatchcase(plain, pattern) for pattern in self.ignored)]
        if others:
            raise UserError(f"{source}: unexpected {listed(str(keys[plain]) for plain in others)}")
        return found

    def _plain(self, name: str) -> str:
        """One of their names, without a prefix and in the one spelling in which names are compared."""
        for prefix in self.prefixes:
            name = name.removeprefix(prefix)
        for spelling, plain in SPELLINGS.items():
            name = re.sub(spelling, plain, name)
        return name


OUR_TABLE = KeyTable({"": ""})


def build(config: EncoderConfig, state: Mapping[Any, Any], source: str, table: KeyTable = OUR_TABLE) -> SpeechEncoder:
    """The encoder of `config` with the weights of `state`, in float32 and eval mode.

    No memory is allocated for the configuration's shapes until the weights are known to match them.

    Raises:
        UserError: unexpected, missing or duplicate keys, a wrong shape or type, values that are not finite.
    """
    with torch.device("meta"):
        encoder = SpeechEncoder(config)
    expected = encoder.state_dict()
    values = table.to_ours(state, expected, source)
    shown_names = {name: f"{source}: {table.theirs(name)}" for name in expected}
    for name, value in values.items():
        _check(value, expected[name], shown_names[name])
    _check_shared(values.values(), source)
    weights = {}  # each in its own memory
    for name, value in values.items():
        weight = value.detach().reshape(expected[name].shape).to(torch.float32, copy=True).contiguous()
        if not bool(weight.isfinite().all()):
            raise UserError(f"{shown_names[name]} has values that are not finite")
        weights[name] = weight
    encoder.load_state_dict(weights, assign=True)
    return encoder.eval()


def listed(names: Iterable[str]) -> str:
    """'key a' or 'keys a, b and 3 more', each cut to a readable length."""
    names = sorted(names)
    shown = ", ".join(f"{name:.100}" for name in names[:MAX_LISTED])
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"key{'s' * (len(names) > 1)} {shown}{more}"


def _check(value: Any, like: Tensor, what: str) -> None:
    """Refuse anything but a dense tensor of floats of `like`'s shape, from which it may differ by axes of length 1."""
    if type(value) not in (Tensor, nn.Parameter) or value.device.type != "cpu":  # a meta tensor has no values
        raise UserError(f"{what} is a {type(value).__name__}, but it must be a tensor with values")
    if value.layout != torch.strided or value.dtype not in WEIGHT_TYPES:
        allowed = ", ".join(str(kind).removeprefix("torch.") for kind in WEIGHT_TYPES)
        kind = str(value.dtype).removeprefix("torch.")
        raise UserError(f"{what} has {kind} values, but they must be dense and one of {allowed}")
    if value.squeeze().shape != like.squeeze().shape:
        shapes = tuple(value.shape), tuple(like.shape)
        raise UserError(f"{what} has shape {shapes[0]}, but the configuration asks for {shapes[1]}")


def _check_shared(values: Collection[Tensor], source: str) -> None:
    """Refuse weights that share memory to such an extent that a small file would become gigabytes."""
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in values}
    stored, claimed = sum(storages.values()), sum(value.numel() * value.element_size() for value in values)
    if claimed > stored + MAX_SHARED:
        raise UserError(f"{source} is refused: its weights have {stored} bytes but claim {claimed}")
