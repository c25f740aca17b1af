"""The little language in which fairseq's configurations describe their convolutions, parsed and never evaluated.

expression := product ("+" product)*        product := factor ("*" number)* | number "*" factor
factor     := "[" layer ("," layer)* "]" | "(" expression ")"
layer      := "(" channels "," kernel "," stride ")"
"""

import re
from typing import Any

from ..errors import UserError, shown

Layers = list[tuple[int, int, int]]
MAX_LAYERS = 64
MAX_TEXT = 4096
_TOKEN = re.compile(r"\s*(?:(\d{1,6})(?!\d)|([\[\](),+*]))")


def parse_conv_layers(value: Any, source: str) -> Layers:
    """(channels, kernel, stride) of each convolution, from such a text or from a list of triples.

    Raises:
        UserError: anything that is not of the grammar, or more than 64 convolutions.
    """
    if isinstance(value, str):
        return _Parser(value, source).parse()
    rows = value if isinstance(value, (list, tuple)) else ()
    triples = [tuple(layer) if isinstance(layer, (list, tuple)) else () for layer in rows]
    are_triples = all(len(layer) == 3 and all(type(number) is int for number in layer) for layer in triples)
    if not 0 < len(triples) <= MAX_LAYERS or not are_triples:
        raise UserError(f"{source}: conv_feature_layers is {shown(value)}, not a list of (channels, kernel, stride)")
    return triples  # type: ignore[return-value]  # checked just above


class _Parser:
    """Recursive descent; nesting is bounded by the length of the text."""

    def __init__(self, text: str, source: str) -> None:
        self.shown, self.source, self.position = f"{text:.80}", source, 0
        self.tokens: list[int | str] = []
        at = 0
        text = text.rstrip()
        while at < len(text) <= MAX_TEXT:
            match = _TOKEN.match(text, at)
            if match is None:
                raise self._error(f"'{text[at : at + 10].strip()}' is not part of one")
            self.tokens.append(int(match[1]) if match[1] else match[2])
            at = match.end()
        if len(text) > MAX_TEXT:
            raise self._error("it is too long")

    def parse(self) -> Layers:
        layers = self._expression(depth=0)
        if self.position < len(self.tokens):
            raise self._error(f"'{self.tokens[self.position]}' is left over")
        return layers

    def _expression(self, depth: int) -> Layers:
        layers = self._product(depth)
        while self._accept("+"):
            layers = self._bounded(layers + self._product(depth))
        return layers

    def _product(self, depth: int) -> Layers:
        times = 1
        if isinstance(self._peek(), int):
            times = self._number()
            self._expect("*")
        layers = self._repeat(self._factor(depth), times)
        while self._accept("*"):
            layers = self._repeat(layers, self._number())
        return layers

    def _factor(self, depth: int) -> Layers:
        if depth < 8 and self._accept("("):
            layers = self._expression(depth + 1)
            self._expect(")")
            return layers
        self._expect("[")
        layers = [self._layer()]
        while self._accept(","):
            if self._peek() == "]":
                break
            layers = self._bounded([*layers, self._layer()])
        self._expect("]")
        return layers

    def _layer(self) -> tuple[int, int, int]:
        self._expect("(")
        channels = self._number()
        self._expect(",")
        kernel = self._number()
        self._expect(",")
        stride = self._number()
        self._expect(")")
        return channels, kernel, stride

    def _repeat(self, layers: Layers, times: int) -> Layers:
        if times * len(layers) > MAX_LAYERS:
            raise self._error(f"more than {MAX_LAYERS} convolutions")
        return layers * times

    def _bounded(self, layers: Layers) -> Layers:
        return self._repeat(layers, 1)

    def _peek(self) -> int | str | None:
        return self.tokens[self.position] if self.position < len(self.tokens) else None

    def _accept(self, token: str) -> bool:
        found = self._peek() == token
        self.position += found
        return found

    def _expect(self, token: str) -> None:
        if not self._accept(token):
            raise self._error(f"'{token}' is expected where {self._found()} stands")

    def _number(self) -> int:
        token = self._peek()
        if not isinstance(token, int):
            raise self._error(f"a number is expected where {self._found()} stands")
        self.position += 1
        return token

    def _found(self) -> str:
        token = self._peek()
        return "the end" if token is None else f"'{token}'"

    def _error(self, why: str) -> UserError:
        return UserError(f"{self.source}: conv_feature_layers is '{self.shown}', no list of convolutions: {why}")
