"""Hard-concrete gates on a speech encoder's units: channels, heads, inner units, and entire sublayers.

A gate multiplies a unit's output (Louizos et al. 2018, arXiv 1712.01312, section 2.2, as DPHuBERT uses it). Here it
multiplies the weight that is next applied to the output instead: the same numbers, without a second copy of every
activation. An encoder with gates is thus the same encoder, run with other weights.
"""

import math
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from distiller.students.config import UNITS
from upstream.config import EncoderConfig
from upstream.encoder import EncoderOutput, SpeechEncoder

BETA = 2 / 3  # temperature
LEFT, RIGHT = -0.1, 1.1  # the interval that the concrete variable is stretched to
SHARPNESS = 0.8  # of the deterministic gates, Louizos' "magical number" in the public implementations
CLOSED = BETA * math.log(-LEFT / RIGHT)  # log alpha at which a gate is open with probability one half
SPREAD = 0.01  # standard deviation of log alpha at the start


class GateSite(NamedTuple):
    """The place of a group of gates: one of UNITS, and the index of its convolution or Transformer layer."""

    unit: str
    layer: int


GateValues = dict[GateSite, Tensor]  # a number per unit of each site: gate values, or probabilities


class HardConcrete(nn.Module):
    """Gates in [0, 1] that are exactly 0 with a probability that gradients can move."""

    def __init__(self, units: int, drop: float) -> None:
        """
        Args:
            drop: the initial rate; log alpha starts around log((1 - drop) / drop).
        """
        super().__init__()
        self.log_alpha = nn.Parameter(math.log((1 - drop) / drop) + SPREAD * torch.randn(units))

    def open_probability(self) -> Tensor:
        """P(z > 0) of each unit, (unit,)."""
        return torch.sigmoid(self.log_alpha - CLOSED)

    def sample(self) -> Tensor:
        """Training: sigmoid((log u - log(1 - u) + log alpha) / beta), stretched and clamped; (unit,)."""
        tiny = torch.finfo(torch.float32).eps
        noise = torch.empty_like(self.log_alpha).uniform_(tiny, 1 - tiny)
        concrete = torch.sigmoid((noise.logit() + self.log_alpha) / BETA)
        return (concrete * (RIGHT - LEFT) + LEFT).clamp(0, 1)

    @torch.no_grad()
    def deterministic(self, at_least: int = 0, shift: float = 0.0) -> Tensor:
        """Evaluation: as many zeros as expected, at the lowest log alpha, but at least `at_least` open; (unit,).

        Args:
            shift: added to log alpha when computing the expected number.
        """
        open_units = torch.sigmoid(self.log_alpha + shift - CLOSED).sum()
        closed = round(self.log_alpha.numel() - float(open_units))
        value = torch.sigmoid(SHARPNESS * self.log_alpha / BETA)
        lowest = self.log_alpha.argsort(stable=True)[: min(closed, self.log_alpha.numel() - at_least)]
        return value.index_fill(0, lowest, 0.0)


def unit_count(config: EncoderConfig, unit: str, index: int) -> int:
    """How many units a convolution or Transformer layer has; 0 where the sublayer is missing or empty."""
    if unit == "channels":
        return config.conv_layers[index][0]
    count = len(config.attention_heads[index] or ()) if unit in ("heads", "attention") else config.ffn_dims[index] or 0
    return count if unit in ("heads", "ffn_units") else min(1, count)


def gated_sites(config: EncoderConfig, units: Iterable[str]) -> dict[GateSite, int]:
    """Every site of the chosen `units` in an encoder, and how many units it has.

    The last convolution of an encoder without a projection is as wide as the encoder and keeps its channels.
    """
    convolutions = len(config.conv_layers) - (not config.projection)
    sites = [
        GateSite(unit, index)
        for unit in UNITS
        if unit in units
        for index in range(convolutions if unit == "channels" else config.num_layers)
    ]
    return {site: count for site in sites if (count := unit_count(config, *site))}


class GatedEncoder(nn.Module):
    """A speech encoder with gates: sampled once per forward pass in training, deterministic in evaluation."""

    def __init__(self, encoder: SpeechEncoder, drops: dict[str, float]) -> None:
        """
        Args:
            encoder: becomes part of this module; its weights are trained too.
            drops: the initial drop rate of each unit to gate (of UNITS).
        """
        super().__init__()
        self.encoder = encoder
        self.sites = gated_sites(encoder.config, drops)
        self.gates = nn.ModuleList(HardConcrete(count, drops[site.unit]) for site, count in self.sites.items())
        self.shift = 0.0  # of every log alpha in evaluation, see `SparsityLagrangian.settle_gates`
        last = GateSite("channels", len(encoder.config.conv_layers) - 1)
        extractor = encoder.feature_extractor
        if last in self.sites and extractor.scale is None:  # it is followed by a layer norm, not a weight
            del extractor.scale
            extractor.register_buffer("scale", torch.ones(self.sites[last]), persistent=False)

    @property
    def config(self) -> EncoderConfig:
        """The encoder's shape with all of its units."""
        return self.encoder.config

    def by_site(self) -> dict[GateSite, HardConcrete]:
        return dict(zip(self.sites, self.gates, strict=True))  # type: ignore[arg-type]  # ModuleList forgets the type

    def forward(
        self,
        waveforms: Tensor,
        lengths: Tensor | None = None,
        attention_maps: bool = False,
        values: GateValues | None = None,
    ) -> EncoderOutput:
        """As `SpeechEncoder.forward`, with gates: `values`, or those from `draw`."""
        weights = dict(chain(self.encoder.named_parameters(), self.encoder.named_buffers()))
        gated: dict[str, Tensor] = {}
        for site, value in (values or self.draw()).items():
            for name, factor in _factors(site, value, self.config):
                if name in weights:  # some convolutions have no bias
                    gated[name] = gated.get(name, weights[name]) * factor
        return functional_call(self.encoder, gated, (waveforms, lengths, attention_maps))

    def draw(self) -> GateValues:
        """Gate values: a sample in training mode, the fixed ones in evaluation."""
        if not self.training:
            return self.fixed()
        return {site: gate.sample() for site, gate in self.by_site().items()}

    def fixed(self) -> GateValues:
        """The gate values of evaluation, see `HardConcrete.deterministic`; every convolution keeps a channel."""
        return {
            site: gate.deterministic(int(site.unit == "channels"), self.shift) for site, gate in self.by_site().items()
        }

    def probabilities(self) -> GateValues:
        """P(z > 0) of every unit."""
        return {site: gate.open_probability() for site, gate in self.by_site().items()}


def _factors(site: GateSite, value: Tensor, config: EncoderConfig) -> Iterator[tuple[str, Tensor]]:
    """The parameters that a site's gates `value` (unit,) multiply, by name, and the factor of each."""
    if site.unit == "channels":
        if site.layer + 1 < len(config.conv_layers):
            yield f"feature_extractor.conv_layers.{site.layer + 1}.conv.weight", value[:, None]  # (out, in, tap)
        else:
            yield "feature_extractor.scale", value
        if config.conv_norm == "layer":
            # A channel zeroed only after the layer norm would still count in its statistics, and could not be removed
            # without changing the others.
            yield f"feature_extractor.conv_layers.{site.layer}.conv.weight", value[:, None, None]
            yield f"feature_extractor.conv_layers.{site.layer}.conv.bias", value
        return
    sublayer = "attention.out_proj" if site.unit in ("heads", "attention") else "feed_forward.output"
    linear = f"layers.{site.layer}.{sublayer}"
    yield f"{linear}.weight", value.repeat_interleave(config.head_dim if site.unit == "heads" else 1)  # (out, in)
    if site.unit in ("attention", "ffn"):  # the whole output
        yield f"{linear}.bias", value
