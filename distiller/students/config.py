"""The student and pruning sections of a recipe."""

import math
from dataclasses import dataclass, field, replace

from distiller.training.config import OptimizerConfig, TrainerConfig
from upstream.errors import one_of, require

# what a gate is on -> the name of its units in figures and tables
UNITS = {
    "channels": "convolution channels",
    "heads": "attention heads",
    "ffn_units": "feed-forward units",
    "attention": "attention sublayers",
    "ffn": "feed-forward sublayers",
}


@dataclass
class FinalConfig:
    """The second distillation, of what is left after the cut, against the first (DPHuBERT's values)."""

    length: float = 0.5  # of the first's steps or epochs
    lr_scale: float = 0.5  # of optimizer.lr
    warmup: float = 0.2  # share of its own steps

    def validate(self) -> None:
        for key in ("length", "lr_scale"):
            require(0 < getattr(self, key) < math.inf, f"pruning.final.{key}", getattr(self, key), "a number above 0")
        require(0 <= self.warmup < 1, "pruning.final.warmup", self.warmup, "a share of the steps, from 0 to below 1")

    def optimizer(self, first: OptimizerConfig) -> OptimizerConfig:
        return replace(first, lr=first.lr * self.lr_scale, warmup=self.warmup)

    def trainer(self, first: TrainerConfig) -> TrainerConfig:
        lengths = {"steps": first.steps, "epochs": first.epochs}
        return replace(first, **{key: value and max(1, round(value * self.length)) for key, value in lengths.items()})


@dataclass
class PruningConfig:
    """A recipe's `pruning` section: which units may go, and how the target is approached (DPHuBERT's values)."""

    target: float = 0.75  # share of the teacher's parameters that goes
    units: list[str] = field(default_factory=lambda: ["channels", "heads", "ffn_units"])
    drop: float = 0.01  # initial drop rate of channels, heads, and whole sublayers
    ffn_drop: float = 0.5  # of feed-forward units
    warmup: float = 0.1  # share of the steps over which the target rises from 0
    lr: float = 0.02  # of gates and multipliers; shorter runs scale it, see `time_scale`
    final: FinalConfig = field(default_factory=FinalConfig)

    def validate(self) -> None:
        require(0 < self.target < 1, "pruning.target", self.target, "a share of the parameters above 0 and below 1")
        known = bool(self.units) and len(set(self.units)) == len(self.units) and set(self.units) <= set(UNITS)
        wrong = next((unit for unit in self.units if unit not in UNITS), self.units)
        require(known, "pruning.units", wrong, f"different names, each {one_of(wrong, list(UNITS))}")
        for key in ("drop", "ffn_drop"):
            require(0 < getattr(self, key) < 1, f"pruning.{key}", getattr(self, key), "a rate above 0 and below 1")
        require(0 <= self.warmup < 1, "pruning.warmup", self.warmup, "a share of the steps, from 0 to below 1")
        require(0 < self.lr < math.inf, "pruning.lr", self.lr, "a number above 0")

    @property
    def drops(self) -> dict[str, float]:
        """Initial drop rate of each gated unit."""
        return {unit: self.ffn_drop if unit == "ffn_units" else self.drop for unit in self.units}


INITIALIZATIONS = ("random", "teacher")


@dataclass(frozen=True)
class Size:
    """What makes a narrow student: its width, inner width, heads, depth and the extractor's channels."""

    embed_dim: int
    ffn_dim: int
    num_heads: int
    layers: int
    conv_layers: tuple[tuple[int, int, int], ...]


def _paper_extractor(width: int) -> tuple[tuple[int, int, int], ...]:
    """STaR's extractor, its last convolutions as wide as the encoder, so that nothing is projected."""
    return ((128, 10, 5), (256, 1, 1), *((256, 3, 2),) * 4, (width, 1, 1), *((width, 2, 2),) * 2)


# base: the paper's, 22,308,592 parameters; L: 26,626,672, its inner width inferred from the printed figures;
# S (14,114,800) and XS (9,393,472): our choice among the widths that give the printed counts.
SIZES = {
    "base": Size(432, 976, 12, 12, _paper_extractor(432)),
    "L": Size(432, 1392, 12, 12, _paper_extractor(432)),
    "S": Size(336, 792, 12, 12, _paper_extractor(336)),
    "XS": Size(288, 504, 12, 12, _paper_extractor(288)),
    # for the embedded teacher: a quarter of its parameters
    "embedded": Size(
        96, 256, 4, 6, ((32, 10, 5), (32, 3, 2), (32, 3, 2), (48, 3, 2), (64, 3, 2), (64, 2, 2), (96, 2, 2))
    ),
}


@dataclass
class PrunedConfig:
    """A copy of the teacher, from which the recipe's `pruning` section takes units."""

    name: str = "pruned"
    dropout: float = 0.0  # attention, hidden and activation; our choice
    feature_dropout: float = 0.0

    def validate(self) -> None:
        _check_dropouts(self)


@dataclass
class NarrowConfig:
    """A student of the teacher's kind but narrower, as in the STaR paper.

    size: one of SIZES, or "teacher" for the teacher's own widths (with fewer `layers`, DistilHuBERT's shape).
    initialization: "random" as in the paper, or "teacher": everything the two have in common, the lowest layers first.
    """

    name: str = "narrow"
    size: str = "base"
    layers: int | None = None  # the size's own when left out
    initialization: str = "random"
    dropout: float = 0.1  # attention, hidden and activation
    feature_dropout: float = 0.05

    def validate(self) -> None:
        """Raises UserError on a value that no student can have."""
        for key, allowed in (("size", (*SIZES, "teacher")), ("initialization", INITIALIZATIONS)):
            value = getattr(self, key)
            require(value in allowed, f"student.{key}", value, one_of(value, allowed))
        if self.initialization == "teacher":
            require(self.size == "teacher", "student.size", self.size, "teacher when student.initialization is")
        require(self.layers is None or self.layers >= 1, "student.layers", self.layers, "an integer of at least 1")
        _check_dropouts(self)


def _check_dropouts(student: NarrowConfig | PrunedConfig) -> None:
    for key in ("dropout", "feature_dropout"):
        value = getattr(student, key)
        require(0 <= value < 1, f"student.{key}", value, "a probability below 1")
