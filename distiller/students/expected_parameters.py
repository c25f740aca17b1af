"""Parameters of an encoder once its closed units are removed: exact for masks, the expectation for probabilities.

Each part is counted as `students.prune` leaves it: a unit's weights are removed with it, the output bias of an emptied
sublayer stays, a pre-LN norm is removed with the last unit that it feeds, and the projection gains a column when any
channel before its norm is removed.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from distiller.students.gates import GateSite, GateValues
from upstream.config import EncoderConfig
from upstream.families import FAMILIES


def expected_parameters(config: EncoderConfig, probabilities: GateValues) -> Tensor:
    """Expected parameters of the pruned encoder when gates are independent; a scalar, in float64 if the device has it.

    Args:
        config: the encoder before pruning.
        probabilities: P(z > 0) of every unit of the gated sites (see `opened` for values); everything else stays.
    """
    return _Count(config, probabilities).total()


def opened(values: GateValues) -> GateValues:
    """Gate values as probabilities: 1 where a gate is open at all, 0 where it is closed."""
    return {site: (value > 0).float() for site, value in values.items()}


class _Count:
    """The sums behind `expected_parameters`, part by part."""

    def __init__(self, config: EncoderConfig, probabilities: GateValues) -> None:
        self.config, self.probabilities = config, probabilities
        self.device = next((chance.device for chance in probabilities.values()), torch.device("cpu"))
        self.precision = torch.float32 if self.device.type == "mps" else torch.float64  # MPS has no float64

    def total(self) -> Tensor:
        config = self.config
        per_head = 4 * config.embed_dim * config.head_dim + 3 * config.head_dim + config.relative_position
        position_gate = 8 * (config.head_dim + 1) * config.relative_position  # WavLM's, if any head remains
        heads = [None if layer is None else len(layer) for layer in config.attention_heads]
        parts = [
            self.extractor(),
            *self.sublayers("attention", "heads", heads, per_head, position_gate),
            *self.sublayers("ffn", "ffn_units", config.ffn_dims, 2 * config.embed_dim + 1),
        ]
        return torch.stack(parts).sum() + self.fixed()

    def chances(self, unit: str, index: int, count: int) -> Tensor:
        """P(z > 0) of each unit of a site, (count,); 1 where it has no gate."""
        chances = self.probabilities.get(GateSite(unit, index))
        if chances is None:
            return torch.ones(count, dtype=self.precision, device=self.device)
        return chances.to(self.precision)

    def extractor(self) -> Tensor:
        """Convolutions, their norms and the scale of the last; the projection, its norm and its column."""
        config, width = self.config, self.config.embed_dim
        channels = [self.chances("channels", index, layer[0]) for index, layer in enumerate(config.conv_layers)]
        remaining = [chance.sum() for chance in channels]
        inputs = [torch.ones_like(remaining[0]), *remaining[:-1]]
        total = torch.zeros_like(remaining[0])
        for index, (_, kernel, _) in enumerate(config.conv_layers):
            normed = config.conv_norm == "layer" or index == 0
            total = total + remaining[index] * (inputs[index] * kernel + config.conv_bias + 2 * normed)
        gated = GateSite("channels", len(remaining) - 1) in self.probabilities
        total = total + remaining[-1] * ((config.feature_scale or gated) + 2 * config.feature_norm)
        if config.projection:
            pruned_before = config.norm_width(-1) > len(channels[-1])
            any_closed = 1.0 if pruned_before else 1 - _product(channels[-1])
            total = total + remaining[-1] * width + width + any_closed * width * config.feature_norm
        return total

    def sublayers(
        self, sublayer: str, unit: str, counts: Sequence[int | None], per_unit: int, shared: int = 0
    ) -> Iterator[Tensor]:
        """Each existing sublayer: `per_unit` for each unit, `shared` if any remains, the output bias."""
        norm = 2 * self.config.embed_dim * self.config.layer_norm_first
        for index, count in enumerate(counts):
            if count is not None:
                chances = self.chances(unit, index, count)
                any_open = 1 - _product(1 - chances)
                stays = self.chances(sublayer, index, 1)[0]
                yield stays * (chances.sum() * per_unit + any_open * (shared + norm) + self.config.embed_dim)

    def fixed(self) -> int:
        """Parts without a gate: positional convolution, norms of the residual stream, WavLM's table."""
        config, width = self.config, self.config.embed_dim
        taps = config.positional_kernel * width * (width // config.positional_groups)
        if FAMILIES[config.family].positional_stack:
            positional = config.positional_layers * (taps + width)
        else:
            positional = taps + width + config.positional_kernel
        norms = 2 * width * (1 + 2 * config.num_layers * (not config.layer_norm_first))
        return positional + norms + config.relative_buckets * config.num_heads * config.relative_position


def _product(chances: Tensor) -> Tensor:
    """The product of probabilities, by logarithms: the gradient of `prod` waits for the device to locate zeros.

    A zero is replaced by the smallest number and its gradient by 0, as a saturated sigmoid would make it anyway.
    """
    return chances.clamp(min=torch.finfo(chances.dtype).tiny).log().sum().exp()
