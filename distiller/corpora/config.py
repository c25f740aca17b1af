"""The corpus section of a recipe."""

import math
from dataclasses import dataclass, field

from upstream.errors import require

EMBEDDED = "embedded"


@dataclass
class CorpusConfig:
    """What to train on, and how it is cut into batches. Durations in seconds."""

    path: str = EMBEDDED  # or a folder (LibriSpeech, any audio, Lhotse Shar), a Lhotse manifest, a list of these
    subsets: list[str] = field(default_factory=list)  # folders or manifests in `path`; none: all of it
    validation: list[str] = field(default_factory=list)  # subsets to validate on; none: hold out a share of the rest
    validation_share: float = 0.02
    min_seconds: float = 0.0  # utterances outside these bounds are left out
    max_seconds: float | None = None  # never more than batch_seconds, whatever stands here
    batch_seconds: float = 100.0  # most audio in a batch of one device, padding included
    buckets: int = 20  # by duration
    workers: int = 2  # processes that decode
    max_skipped: float = 0.01  # share of undecodable utterances that stops the run

    def validate(self) -> None:
        """Raise UserError for a value that cannot be."""
        require(bool(self.path), "corpus.path", self.path, f"a folder, a file, or {EMBEDDED}")
        for key in ("subsets", "validation"):
            names = getattr(self, key)
            require(all(names) and len(set(names)) == len(names), f"corpus.{key}", names, "a list of different names")
            require(not names or self.path != EMBEDDED, f"corpus.{key}", names, "empty when corpus.path is embedded")
        both = sorted(set(self.subsets) & set(self.validation))
        require(not both, "corpus.validation", self.validation, f"apart from corpus.subsets, which has {both} too")
        require(
            not self.validation or bool(self.subsets),
            "corpus.subsets",
            self.subsets,
            "a list of what to train on when corpus.validation names subsets",
        )
        share = "a share above 0 and below 1"
        require(0 < self.validation_share < 1, "corpus.validation_share", self.validation_share, share)
        require(0 <= self.min_seconds < math.inf, "corpus.min_seconds", self.min_seconds, "a number of at least 0")
        longest = math.inf if self.max_seconds is None else self.max_seconds
        above = f"a number above corpus.min_seconds ({self.min_seconds:g})"
        require(longest > self.min_seconds, "corpus.max_seconds", self.max_seconds, f"{above}, or null")
        require(self.min_seconds < self.batch_seconds < math.inf, "corpus.batch_seconds", self.batch_seconds, above)
        require(self.buckets >= 1, "corpus.buckets", self.buckets, "an integer of at least 1")
        require(self.workers >= 0, "corpus.workers", self.workers, "an integer of at least 0")
        require(0 <= self.max_skipped <= 1, "corpus.max_skipped", self.max_skipped, "a share from 0 to 1")

    @property
    def longest(self) -> float:
        """Seconds of the longest utterance that is used: a batch's, or max_seconds if that is less."""
        return self.batch_seconds if self.max_seconds is None else min(self.max_seconds, self.batch_seconds)
