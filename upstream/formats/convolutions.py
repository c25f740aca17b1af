"""fairseq's convolution strings, such as "[(512,10,5)] + [(512,3,2)] * 4": parsed, never evaluated."""

import ast
import re
from typing import Any

from ..errors import UserError, shown

Layers = list[tuple[int, int, int]]
MAX_LAYERS = 64
TEXT = re.compile(r"[\d\s\[\](),+*]{1,4096}", re.ASCII)


def parse_conv_layers(value: Any, source: str) -> Layers:
    """(channels, kernel, stride) of each convolution, from such a string or a list of triples.

    Raises:
        UserError: anything but lists of triples, joined by "+" and repeated by "*", or more than 64 convolutions.
    """
    try:
        if isinstance(value, str) and not TEXT.fullmatch(value):
            raise ValueError
        read = _layers(ast.parse(value.strip(), mode="eval").body) if isinstance(value, str) else value
        layers = [(channels, kernel, stride) for channels, kernel, stride in _repeated(read, 1)]
        if any(type(number) is not int for layer in layers for number in layer):
            raise TypeError
    except (TypeError, ValueError, SyntaxError, MemoryError, RecursionError):  # the last two: nesting
        raise UserError(
            f"{source}: conv_feature_layers is {shown(value)}, but it must be a list of 1 to {MAX_LAYERS} triples "
            "(channels, kernel, stride), such as '[(512,10,5)] + [(512,3,2)] * 4'"
        ) from None
    return layers


def _layers(node: ast.expr) -> Layers:
    match node:
        case ast.List():
            return ast.literal_eval(node)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _repeated(_layers(left) + _layers(right), 1)
        case ast.BinOp(left=layers, op=ast.Mult(), right=ast.Constant(value=int(times))):
            return _repeated(_layers(layers), times)
        case ast.BinOp(left=ast.Constant(value=int(times)), op=ast.Mult(), right=layers):
            return _repeated(_layers(layers), times)
    raise ValueError


def _repeated(layers: Layers, times: int) -> Layers:
    """The list `times` times; its length is checked before it is made."""
    if not 0 < len(layers) * times <= MAX_LAYERS:
        raise ValueError
    return layers * times
