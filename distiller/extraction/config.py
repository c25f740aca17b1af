"""Which features are extracted, and how they are stored."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from upstream.errors import one_of, require

DTYPES, FORMATS = ("fp32", "fp16"), ("npy", "safetensors", "hdf5")
ZEROS = ("feature_projection", "transformer_input")  # which one is layer 0: P or F^0


@dataclass(frozen=True)
class FeaturesConfig:
    """The settings of index.json.

    Raises:
        UserError: an impossible value; names its option.
    """

    layers: list[int] | None = None  # of the encoder; None: all of them
    mean: bool = False  # of the layers, in place of each
    weights: list[float] | None = None  # of the layers: their weighted sum, in place of each
    layer_zero: str = "feature_projection"
    dtype: str = "fp32"
    format: str = "npy"
    chunk_seconds: float = 60.0  # longer recordings are computed in chunks of this length, see `upstream.chunked`

    def __post_init__(self) -> None:
        distinct = self.layers is None or len(set(self.layers)) == len(self.layers)
        require(distinct, "--layers", self.layers, "all, or different layers of the encoder")
        require(not (self.mean and self.weights), "--mean", self.mean, "left out with --weights")
        require(self.layer_zero in ZEROS, "--layer-zero", self.layer_zero, one_of(self.layer_zero, ZEROS))
        require(self.dtype in DTYPES, "--dtype", self.dtype, one_of(self.dtype, DTYPES))
        require(self.format in FORMATS, "--format", self.format, one_of(self.format, FORMATS))

    def for_encoder(self, depth: int) -> "FeaturesConfig":
        """The same with explicit layers instead of all of them: 0..depth, or 1..depth if there are `depth` weights.

        Raises:
            UserError: a layer that an encoder of `depth` layers does not have, or another number of weights.
        """
        weights = self.weights
        every = list(range(1 if weights is not None and len(weights) == depth else 0, depth + 1))
        layers = every if self.layers is None else self.layers
        known = f"all, or layers of the encoder, from 0 to {depth}"
        require(all(0 <= layer <= depth for layer in layers), "--layers", layers, known)
        if weights is not None:
            require(
                len(weights) == len(layers), "--layers", layers, f"{len(weights)} layers, one for each of --weights"
            )
        return replace(self, layers=layers)

    @property
    def single(self) -> bool:
        """True if an utterance's features are (frame, channel), False if (layer, frame, channel)."""
        return self.mean or self.weights is not None or len(self.layers or ()) == 1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
