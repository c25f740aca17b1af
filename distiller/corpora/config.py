"""The corpus section of a recipe."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from distiller.augmentation.config import AugmentConfig
from distiller.common.strict import ABOVE_0, AT_LEAST_0, AT_LEAST_1, STRICT, Text, check
from upstream.errors import require

AUTO = "auto"  # of batch_seconds
SYNTHETIC = "synthetic"  # the name of the corpus that the project synthesises
SCANS = ("*.jsonl.gz", "*.skipped.csv")  # the files of a scan in a corpus's cache

Names = Annotated[
    list[Text],
    check(lambda names: all(names) and len(set(names)) == len(names)),
    Field(description="a list of different names"),
]


@dataclass(config=STRICT)
class CorpusConfig:
    """The training audio, and how it is split into batches. Durations in seconds."""

    # a folder (LibriSpeech, any audio, Lhotse Shar), a Lhotse manifest, a list of these, or the synthetic corpus
    path: Annotated[Text, check(bool), Field(description=f"a folder, a file, or {SYNTHETIC}")] = SYNTHETIC
    subsets: Names = field(default_factory=list)  # folders or manifests in `path`; none: all of it
    validation: Names = field(default_factory=list)  # subsets to validate on; none: hold out a share of the rest
    validation_share: Annotated[float, Field(gt=0, lt=1, description="a share above 0 and below 1")] = 0.02
    min_seconds: Annotated[float, AT_LEAST_0] = 0.0  # shorter utterances are not used
    # longer ones are split; batch_seconds at most
    max_seconds: Annotated[float | None, Field(allow_inf_nan=True)] = None
    # longer ones are split into equal windows of at most this; null: they are not used
    window_seconds: Annotated[float | None, ABOVE_0] = 20.0
    # of one device, padding included; auto: as much as fits in memory, so that the batches of a step have step_seconds
    batch_seconds: Annotated[
        float | Literal["auto"], Field(description="a number above corpus.min_seconds, or auto")
    ] = 100.0
    step_seconds: Annotated[float | None, ABOVE_0] = None  # of all devices; only used by auto
    buckets: Annotated[int, AT_LEAST_1] = 20  # by duration
    workers: Annotated[int, Field(ge=0, description="an integer of at least 0")] = 2  # decoding processes
    # share of undecodable utterances that stops the run
    max_skipped: Annotated[float, Field(ge=0, le=1, description="a share from 0 to 1")] = 0.01
    augment: AugmentConfig = field(default_factory=AugmentConfig)  # in training only

    @model_validator(mode="after")
    def _subsets_and_bounds(self) -> "CorpusConfig":
        for key in ("subsets", "validation"):
            names = getattr(self, key)
            require(
                not names or self.path != SYNTHETIC, f"corpus.{key}", names, f"empty when corpus.path is {SYNTHETIC}"
            )
        both = sorted(set(self.subsets) & set(self.validation))
        require(
            not both, "corpus.validation", self.validation, f"disjoint from corpus.subsets, which also contains {both}"
        )
        require(
            not self.validation or bool(self.subsets),
            "corpus.subsets",
            self.subsets,
            "a list of the subsets to train on when corpus.validation is set",
        )
        above = f"a number above corpus.min_seconds ({self.min_seconds:g})"
        longest = self.max_seconds is None or self.max_seconds > self.min_seconds
        require(longest, "corpus.max_seconds", self.max_seconds, f"{above}, or null")
        auto, known = self.batch_seconds == AUTO, self.step_seconds is not None
        require(auto or self.seconds > self.min_seconds, "corpus.batch_seconds", self.batch_seconds, above)
        require(known or not auto, "corpus.step_seconds", None, "a number when corpus.batch_seconds is auto")
        return self

    @property
    def seconds(self) -> float:
        """batch_seconds, once it is a number."""
        return float(self.batch_seconds)

    @property
    def longest(self) -> float:
        """Seconds of the longest utterance that is used whole: a batch's length, or max_seconds if that is less."""
        return self.seconds if self.max_seconds is None else min(self.max_seconds, self.seconds)

    @property
    def window(self) -> float | None:
        """Seconds of the longest window of a longer recording; None if those are not used."""
        return None if self.window_seconds is None else min(self.window_seconds, self.longest)
