"""The content of a corpus and how it is used: the lines at the start of a run, in its report and on its card."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lhotse.cut.data import DataCut


@dataclass(frozen=True)
class Amount:
    """A number of recordings (files, or cuts of a manifest) and their length."""

    count: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, cuts: Iterable[DataCut]) -> "Amount":
        durations = [cut.duration for cut in cuts]
        return cls(len(durations), round(sum(durations), 3))

    def __str__(self) -> str:
        return f"{self.count:,} recording{'' if self.count == 1 else 's'} ({self.seconds / 3600:,.3g} hours)"


@dataclass(frozen=True)
class Inventory:
    """Every recording found in a corpus, in one of six groups: their counts add up to the number `found`.

    The length of files that cannot be opened is not known.
    """

    whole: Amount  # used as they are
    split: Amount  # used in windows
    windows: int
    short: Amount  # left out, as are the others
    long: Amount
    unusable: int  # listed in skipped.csv with their reasons
    not_read: dict[str, int]  # by the ending of their names
    min_seconds: float
    longest: float  # seconds of the longest recording that is used whole
    window_seconds: float | None = None
    found: int = field(init=False)

    def __post_init__(self) -> None:
        amounts = (self.whole, self.split, self.short, self.long)
        found = sum(amount.count for amount in amounts) + self.unusable + sum(self.not_read.values())
        object.__setattr__(self, "found", found)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Inventory":
        """The inverse of `to_dict`."""
        amounts: dict[str, Any] = {name: Amount(**values[name]) for name in ("whole", "split", "short", "long")}
        others = {name: value for name, value in values.items() if name != "found"}
        return cls(**(others | amounts))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self, for_long: str = "corpus.window_seconds=20 would split them") -> list[str]:
        """What is split or left out, why, and how to change that; nothing if all is used whole.

        Args:
            for_long: the remedy for recordings that are too long.
        """
        return [f"{title}: {'; '.join(parts)}" for title, parts in self._parts(for_long) if parts]

    def _parts(self, for_long: str) -> Iterator[tuple[str, list[str]]]:
        over = f"longer than {self.longest:g} s"
        if self.split.count:
            windows = f"{self.windows:,} windows of at most {self.window_seconds:g} s (corpus.window_seconds)"
            yield "split", [f"{self.split} {over}, into {windows}"]
        left = []
        if self.short.count:
            left.append(f"{self.short} shorter than {self.min_seconds:g} s (corpus.min_seconds)")
        if self.long.count:
            left.append(f"{self.long} {over} ({for_long})")
        yield "left out", left
        if self.unusable:
            files = f"{self.unusable:,} file{'' if self.unusable == 1 else 's'}"
            yield "set aside", [f"{files} (skipped.csv says why; corpus.max_skipped is the share that stops a run)"]
        if self.not_read:
            kinds = ", ".join(f"{count:,} {ending}" for ending, count in self.not_read.items())
            yield "not read", [f"{kinds} (convert them to wav or flac)"]
