"""The augment section of a recipe's corpus. Every effect is off until it has a probability.

A range is two numbers; what an utterance gets is drawn uniformly between them.
"""

from collections.abc import Callable
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from distiller.common.strict import AT_LEAST_1, STRICT, Text, check
from upstream.errors import require

AUGMENTED = "augmented"  # the teacher's input


def _within(low: float, high: float) -> Callable[[Any], bool]:
    return lambda span: len(span) == 2 and low <= span[0] <= span[1] <= high


def _described(unit: str, low: float, high: float) -> Any:
    return Field(description=f"a list of two {unit} from {low:g} to {high:g}, the lower first")


Probability = Annotated[float, Field(ge=0, le=1, description="a probability from 0 to 1")]
Decibels = Annotated[list[float], check(_within(-60, 60)), _described("levels in dB", -60, 60)]
Seconds = Annotated[list[float], check(_within(0.01, 5)), _described("numbers of seconds", 0.01, 5)]
Hertz = Annotated[list[float], check(_within(0, 8000)), _described("frequencies in Hz", 0, 8000)]
Exponents = Annotated[list[float], check(_within(0, 2)), _described("exponents", 0, 2)]
Codecs = Annotated[
    list[Literal["linear", "mu-law", "a-law", "gsm"]],
    check(bool),
    Field(description="a list of linear, mu-law, a-law, gsm"),
]
# Anything that corpus.path may be
Path = Annotated[Text | None, check(lambda path: path != ""), Field(description="a folder, a file or null")]


@dataclass(config=STRICT)
class SpeechConfig:
    """Parts of other utterances of the batch, each at most half as long as the utterance (WavLM, arXiv 2110.13900)."""

    probability: Probability = 0.0
    snr: Decibels = field(default_factory=lambda: [-5.0, 5.0])  # of each voice
    voices: Annotated[int, AT_LEAST_1] = 1  # at most


@dataclass(config=STRICT)
class NoiseConfig:
    """Noise whose power falls as 1 / frequency^colour (0: white, 1: pink, 2: brown), or recordings of noise."""

    probability: Probability = 0.0
    snr: Decibels = field(default_factory=lambda: [-5.0, 20.0])
    colour: Exponents = field(default_factory=lambda: [0.0, 2.0])  # without a path
    path: Path = None  # recordings of noise


@dataclass(config=STRICT)
class ReverberationConfig:
    """Impulse responses that decay exponentially, or recorded ones."""

    probability: Probability = 0.0
    seconds: Seconds = field(default_factory=lambda: [0.1, 0.8])  # until the echoes have lost 60 dB
    direct: Decibels = field(default_factory=lambda: [-3.0, 12.0])  # level of the direct sound above the echoes
    path: Path = None  # recorded impulse responses; then the two above are not used


@dataclass(config=STRICT)
class BandConfig:
    """Band limits: nothing below the lowest and above the highest frequency."""

    probability: Probability = 0.0
    lowest: Hertz = field(default_factory=lambda: [0.0, 300.0])
    highest: Hertz = field(default_factory=lambda: [3400.0, 8000.0])

    @model_validator(mode="after")
    def _apart(self) -> "BandConfig":
        most = self.highest[0] / 2
        allowed = f"at most {most:g}, half of the lower value of corpus.augment.band.highest"
        require(self.lowest[1] <= most, "corpus.augment.band.lowest", self.lowest, allowed)
        return self


@dataclass(config=STRICT)
class TelephoneConfig:
    """300 to 3,400 Hz at 8 kHz, through one of the codecs."""

    probability: Probability = 0.0
    codecs: Codecs = field(default_factory=lambda: ["mu-law", "gsm"])


@dataclass(config=STRICT)
class GainConfig:
    """A change of level."""

    probability: Probability = 0.0
    decibels: Decibels = field(default_factory=lambda: [-20.0, 10.0])
    clip: bool = True  # clip at -1 and 1, as a recorder does


@dataclass(config=STRICT)
class AugmentConfig:
    """The student's input in place of clean speech: the effects, applied in this order."""

    teacher: Literal["clean", "augmented"] = "clean"  # the teacher's input
    speech: SpeechConfig = field(default_factory=SpeechConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    reverberation: ReverberationConfig = field(default_factory=ReverberationConfig)
    band: BandConfig = field(default_factory=BandConfig)
    telephone: TelephoneConfig = field(default_factory=TelephoneConfig)
    gain: GainConfig = field(default_factory=GainConfig)

    @property
    def enabled(self) -> bool:
        effects = (self.speech, self.noise, self.reverberation, self.band, self.telephone, self.gain)
        return any(effect.probability for effect in effects)
