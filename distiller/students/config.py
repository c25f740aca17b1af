"""The student and pruning sections of a recipe, and the shape of each kind of student."""

from dataclasses import field, replace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator
from pydantic.dataclasses import dataclass

from distiller.common.strict import ABOVE_0, AT_LEAST_1, SHARE_OF_STEPS, STRICT
from upstream.config import EncoderConfig
from upstream.errors import UserError, one_of, require
from upstream.families import FAMILIES

# gated part -> the name of its units in figures and tables
UNITS = {
    "channels": "convolution channels",
    "heads": "attention heads",
    "ffn_units": "feed-forward units",
    "attention": "attention sublayers",
    "ffn": "feed-forward sublayers",
}
RATE = Field(gt=0, lt=1, description="a rate above 0 and below 1")
PROBABILITY = Field(ge=0, lt=1, description="a probability below 1")


@dataclass(config=STRICT)
class FinalConfig:
    """The second distillation, of the pruned student, relative to the first (DPHuBERT's values)."""

    length: Annotated[float, ABOVE_0] = 0.5  # of the first's steps or epochs
    lr_scale: Annotated[float, ABOVE_0] = 0.5  # of optimizer.lr
    warmup: Annotated[float, SHARE_OF_STEPS] = 0.2


@dataclass(config=STRICT)
class PruningConfig:
    """Which units may be removed, and how the target is approached (DPHuBERT's values)."""

    # share of the teacher's parameters to remove
    target: Annotated[float, Field(gt=0, lt=1, description="a share of the parameters above 0 and below 1")] = 0.75
    units: list[str] = field(default_factory=lambda: ["channels", "heads", "ffn_units"])
    drop: Annotated[float, RATE] = 0.01  # initial drop rate of channels, heads and sublayers
    ffn_drop: Annotated[float, RATE] = 0.5  # of feed-forward units
    warmup: Annotated[float, SHARE_OF_STEPS] = 0.1  # over which the target rises from 0
    lr: Annotated[float, ABOVE_0] = 0.02  # of gates and multipliers; shorter runs scale it, see `time_scale`
    final: FinalConfig = field(default_factory=FinalConfig)

    @field_validator("units")
    @classmethod
    def _known_units(cls, units: list[str]) -> list[str]:
        wrong = next((unit for unit in units if unit not in UNITS), units)
        fits = bool(units) and len(set(units)) == len(units) and wrong is units
        require(fits, "pruning.units", wrong, f"different names, each {one_of(wrong, list(UNITS))}")
        return units

    @property
    def drops(self) -> dict[str, float]:
        """Initial drop rate of each gated unit."""
        return {unit: self.ffn_drop if unit == "ffn_units" else self.drop for unit in self.units}


@dataclass(config=STRICT)
class StudentConfig:
    """Base of all student sections; a subclass is a kind of student and gives `name` its own name as default."""

    pruning: ClassVar[type[PruningConfig] | None] = None  # the recipe's pruning section, if this kind has one
    # defaults of the recipe's objective section that hold with this kind of student only, by the objective's name
    objective_defaults: ClassVar[dict[str, dict[str, Any]]] = {}
    # initial weights: the teacher's, for parameters that both have, or random ones
    initialization: ClassVar[str] = "teacher"

    name: str = ""
    dropout: Annotated[float, PROBABILITY] = 0.0  # attention, hidden and activation
    feature_dropout: Annotated[float, PROBABILITY] = 0.0

    def shape(self, teacher: EncoderConfig) -> EncoderConfig:
        """The encoder before any training.

        Raises:
            UserError: a student of this teacher cannot have the requested shape.
        """
        raise NotImplementedError

    def with_dropouts(self, shape: EncoderConfig) -> EncoderConfig:
        rates = dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout"), self.dropout)
        return replace(shape, feature_dropout=self.feature_dropout, **rates)


@dataclass(config=STRICT)
class PrunedConfig(StudentConfig):
    """A copy of the teacher, from which the recipe's `pruning` section removes units; without dropout (our choice)."""

    pruning: ClassVar[type[PruningConfig] | None] = PruningConfig
    # the Lagrangian of pruning assumes a loss of order 1
    objective_defaults: ClassVar[dict[str, dict[str, Any]]] = {"star": {"relative": True}}

    name: str = "pruned"

    def shape(self, teacher: EncoderConfig) -> EncoderConfig:
        if teacher.mel_bins or teacher.chunk_frames:
            kind = (
                "a Whisper encoder" if teacher.whisper else "an encoder with a log-mel front end or chunked attention"
            )
            raise UserError(
                f"{kind} cannot be pruned, only distilled into a narrow student: choose another teacher, or a "
                "method with a narrow student (--method star, student.name=narrow)"
            )
        return self.with_dropouts(teacher)


MEL_BINS = 80  # of a log-mel front end


class Size(NamedTuple):
    """Width, inner width, heads, depth and convolutions of a narrow student."""

    embed_dim: int
    ffn_dim: int
    num_heads: int
    layers: int
    conv_layers: tuple[tuple[int, int, int], ...]  # channels, kernel, stride


def _paper_extractor(width: int) -> tuple[tuple[int, int, int], ...]:
    """STaR's extractor, its last convolutions as wide as the encoder, so that no projection is needed."""
    return ((128, 10, 5), (256, 1, 1), *((256, 3, 2),) * 4, (width, 1, 1), *((width, 2, 2),) * 2)


# base: the paper's, 22,308,592 parameters; L: 26,626,672, its inner width inferred from the printed figures;
# S (14,114,800) and XS (9,393,472): our choice among the widths that give the printed counts.
SIZES = {
    "base": Size(432, 976, 12, 12, _paper_extractor(432)),
    "L": Size(432, 1392, 12, 12, _paper_extractor(432)),
    "S": Size(336, 792, 12, 12, _paper_extractor(336)),
    "XS": Size(288, 504, 12, 12, _paper_extractor(288)),
    # DiceHuBERT's (arXiv 2507.02911) with HuBERT's extractor; 12 heads are our choice
    "dice": Size(384, 1536, 12, 12, ((512, 10, 5), *((512, 3, 2),) * 4, *((512, 2, 2),) * 2)),
    # the bundled teacher
    "bundled": Size(
        192, 768, 4, 12, ((32, 10, 5), (32, 3, 2), (32, 3, 2), (48, 3, 2), (64, 3, 2), (96, 2, 2), (128, 2, 2))
    ),
    # for the bundled teacher and synthetic speech: a ninth of the teacher's parameters
    "synthetic": Size(
        96, 256, 4, 6, ((32, 10, 5), (32, 3, 2), (32, 3, 2), (48, 3, 2), (64, 3, 2), (64, 2, 2), (96, 2, 2))
    ),
}


@dataclass(config=STRICT)
class LogMelConfig:
    """Steps before the run's own, in which only the extractor is trained, on the log-mel spectrogram."""

    steps: Annotated[int, Field(ge=0, description="an integer from 0")] = 0
    lr: Annotated[float, ABOVE_0] = 1e-2  # the other optimiser settings are the recipe's, without weight decay


CHUNKS = {"look_ahead": 4, "left_context": 100}  # frames
FRAMES = Field(ge=0, le=10_000, description="a number of frames from 0 to 10000")


@dataclass(config=STRICT)
class NarrowConfig(StudentConfig):
    """A student of the teacher's kind but narrower, as in the STaR paper.

    size: one of SIZES, or "teacher" for the teacher's own widths (with fewer `layers`, DistilHuBERT's shape).
    initialization: "random" as in the paper, or "teacher": every parameter that both have, the lowest layers first.
    front_end: the size's convolutions, the same with half the channels ("thin"), or log-mel energies with one
        convolution over them ("logmel").
    attention: "chunked": frames attend within chunks of `look_ahead` + 1 and to `left_context` frames before; with
        statistics and positions from the past only, such a student can stream.
    """

    name: str = "narrow"
    size: str = "base"
    layers: Annotated[int | None, AT_LEAST_1] = None  # left out: the size's own
    initialization: Literal["random", "teacher"] = "random"  # type: ignore[misc]  # here the recipe chooses
    front_end: Literal["conv", "thin", "logmel"] = "conv"
    attention: Literal["full", "chunked"] = "full"
    look_ahead: Annotated[int, FRAMES] = CHUNKS["look_ahead"]  # where attention is chunked
    left_context: Annotated[int, FRAMES] = CHUNKS["left_context"]  # before a chunk, likewise
    dropout: Annotated[float, PROBABILITY] = 0.1
    feature_dropout: Annotated[float, PROBABILITY] = 0.05
    log_mel: LogMelConfig = field(default_factory=LogMelConfig)

    @model_validator(mode="after")
    def _known_size(self) -> "NarrowConfig":
        sizes = [*SIZES, "teacher"]
        require(self.size in sizes, "student.size", self.size, one_of(self.size, sizes))
        if self.initialization == "teacher":
            require(self.size == "teacher", "student.size", self.size, "teacher with student.initialization teacher")
            steps = self.log_mel.steps
            require(not steps, "student.log_mel.steps", steps, "0 with student.initialization teacher")
            require(
                self.front_end == "conv",
                "student.front_end",
                self.front_end,
                "conv with student.initialization teacher",
            )
            require(
                self.attention == "full",
                "student.attention",
                self.attention,
                "full with student.initialization teacher",
            )
        chunks = {"look_ahead": self.look_ahead, "left_context": self.left_context}
        if self.attention == "full" and chunks != CHUNKS:
            require(False, "student.attention", self.attention, "chunked with student.look_ahead or .left_context")
        steps, log_mel = self.log_mel.steps, self.front_end == "logmel"
        require(
            not (steps and log_mel),
            "student.log_mel.steps",
            steps,
            "0 with student.front_end logmel, whose input it already is",
        )
        return self

    def shape(self, teacher: EncoderConfig) -> EncoderConfig:
        """As the base class; family and input scaling are the teacher's (for data2vec and Whisper, family HuBERT).

        Raises:
            UserError: more layers than the teacher has, or frames that differ from the teacher's.
        """
        if self.size == "teacher":
            sizes = one_of(self.size, list(SIZES))
            require(not teacher.whisper, "student.size", self.size, f"{sizes} for a Whisper teacher")
            layers = self.layers or teacher.num_layers
            allowed = f"at most {teacher.num_layers}, the teacher's layers"
            require(layers <= teacher.num_layers, "student.layers", layers, allowed)
            shape = replace(
                teacher, attention_heads=teacher.attention_heads[:layers], ffn_dims=teacher.ffn_dims[:layers]
            )
        else:
            size = SIZES[self.size]
            layers = self.layers or size.layers
            shape = EncoderConfig(
                family=FAMILIES[teacher.family].student or teacher.family,
                embed_dim=size.embed_dim,
                num_heads=size.num_heads,
                head_dim=size.embed_dim // size.num_heads,
                attention_heads=(tuple(range(size.num_heads)),) * layers,
                ffn_dims=(size.ffn_dim,) * layers,
                conv_layers=size.conv_layers,
                projection=size.conv_layers[-1][0] != size.embed_dim,
                normalize_waveform=teacher.normalize_waveform,
            )
        shape = with_front_end(shape, self.front_end)
        if self.attention == "chunked":
            shape = self._in_chunks(shape)
        elif self.initialization != "teacher":
            shape = replace(shape, chunk_frames=0, left_frames=0)
        check_same_frames(shape, teacher)
        return self.with_dropouts(shape)

    def _in_chunks(self, shape: EncoderConfig) -> EncoderConfig:
        title, stacked = FAMILIES[shape.family].title, FAMILIES[shape.family].positional_stack
        require(not stacked, "student.size", self.size, f"{one_of('', list(SIZES))} for chunked {title} students")
        chunks = {"chunk_frames": self.look_ahead + 1, "left_frames": self.left_context}
        return replace(shape, normalize_waveform=False, **chunks)


def with_front_end(shape: EncoderConfig, kind: str) -> EncoderConfig:
    """The shape with another front end, as `NarrowConfig.front_end` names it."""
    if kind != "conv":
        shape = replace(shape, unpruned_channels=(), feature_scale=False)
    if kind == "thin":
        halved = tuple((max(1, channels // 2), kernel, stride) for channels, kernel, stride in shape.conv_layers)
        return replace(shape, conv_layers=halved, projection=True)
    if kind == "logmel":
        convolution = (shape.embed_dim, 3, 2)
        return replace(shape, conv_layers=(convolution,), mel_bins=MEL_BINS, conv_bias=True, projection=False)
    return shape


def check_same_frames(student: EncoderConfig, teacher: EncoderConfig) -> None:
    """Raises UserError unless both give the same frames for every clip (a frame count is a composition of floors).

    With Whisper, whose frames are centred elsewhere, only the hops must match: the objectives get the frames that both
    have.
    """
    if teacher.whisper and student.samples_per_frame == teacher.samples_per_frame:
        return
    hops = [(shape.min_samples, shape.samples_per_frame) for shape in (student, teacher)]
    if hops[0] != hops[1] or any(student.frame_count(n) != teacher.frame_count(n) for n in range(4000, 4000 + 640)):
        sizes = " against ".join(f"{field}/{hop}" for field, hop in hops)
        raise UserError(f"student and teacher must use the same frame size and hop: {sizes} samples")


# A kind of student is a line here: its name in a recipe and its class.
STUDENTS: dict[str, type[StudentConfig]] = {"narrow": NarrowConfig, "pruned": PrunedConfig}
