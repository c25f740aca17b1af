"""The settings of discrete units."""

from dataclasses import asdict, dataclass
from typing import Any

from upstream.errors import require


@dataclass(frozen=True)
class UnitsConfig:
    """The settings of targets.json.

    Raises:
        UserError: an impossible value; names its option.
    """

    layers: list[int]  # of the teacher; each has its own codebook
    units: int = 500  # centroids of a stage; up to 256 take one byte a frame
    stages: int = 1  # 1: k-means; more: a residual quantiser
    norm: str = "none"  # of frames before quantisation, see `codebook.normalised`
    layer_zero: str = "feature_projection"  # which one is layer 0: P or F^0
    frames: int = 100_000  # used to fit the codebook
    seed: int = 1

    def __post_init__(self) -> None:
        distinct = bool(self.layers) and len(set(self.layers)) == len(self.layers)
        require(distinct, "--layers", self.layers, "different layers of the teacher")
        require(2 <= self.units <= 65_536, "--units", self.units, "from 2 to 65536")
        require(1 <= self.stages <= 64, "--stages", self.stages, "from 1 to 64")
        require(self.norm in ("none", "frame"), "--norm", self.norm, "none or frame")
        zero = ("feature_projection", "transformer_input")
        require(self.layer_zero in zero, "--layer-zero", self.layer_zero, " or ".join(zero))
        require(self.frames >= 1, "--frames", self.frames, "an integer of at least 1")
        require(0 <= self.seed < 2**32, "--seed", self.seed, "an integer from 0 to 4294967295")

    def check_teacher(self, depth: int) -> None:
        """Raises: UserError: a teacher of `depth` layers does not have all of them."""
        fits = all(0 <= layer <= depth for layer in self.layers)
        require(fits, "--layers", self.layers, f"layers of the teacher, from 0 to {depth}")

    @property
    def streams(self) -> list[str]:
        """A description of each column of the units."""
        return [f"layer {layer}, stage {stage}" for layer in self.layers for stage in range(self.stages)]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
