"""The audio that a run could not use: skipped.csv, and the share of it that stops the run."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from distiller.common.files import lock_folder, writing
from upstream.errors import UserError

if TYPE_CHECKING:
    from distiller.audio.batch import StepBatch

GRACE = 100  # utterances: a share is never taken of fewer, so that one bad file in the first batch stops nothing


class Skipped(NamedTuple):
    """An audio file that cannot be used, and why."""

    path: str
    reason: str


def check_share(skipped: int, seen: int, max_skipped: float, where: str) -> None:
    """Raise UserError when more than `max_skipped` of the `seen` utterances (or of GRACE, if fewer) were skipped."""
    if skipped > max_skipped * max(seen, GRACE):
        raise UserError(
            f"{skipped} of {seen} utterances ({skipped / seen:.1%}) could not be used, more than corpus.max_skipped "
            f"allows ({max_skipped:.1%}); {where}"
        )


def read_skipped(path: Path) -> list[Skipped]:
    """The rows of a skipped.csv; none when there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [Skipped(*row) for row in csv.reader(file)][1:]


def append_skipped(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Add rows to a skipped.csv, one per path however often it is given; every rank may do so at any time.

    The file is written anew beside its name: it is small, and whole at every moment.

    Raises:
        UserError: it cannot be written.
    """
    reasons = dict(rows)
    if not reasons:
        return
    with lock_folder(path.parent, ".busy", wait=True):
        known = dict(read_skipped(path))
        new = [row for row in reasons.items() if row[0] not in known]
        if new:
            write_skipped(path, [*known.items(), *new])


def write_skipped(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    """skipped.csv of (path, reason), whole or not at all."""
    with writing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([Skipped._fields, *rows])


class SkippedLog:
    """Collects, in the main process of a rank, what its windows had to leave out.

    Args:
        path: the skipped.csv, shared by the ranks and by the runs that continue one another.
        max_skipped: largest share of the utterances that may be skipped.
        unreadable: what opening the corpus set aside (`Corpus.skipped`); listed, but no part of the share.
    """

    def __init__(self, path: Path, max_skipped: float, unreadable: Iterable[tuple[str, str]] = ()) -> None:
        self.path, self.max_skipped = path, max_skipped
        self.seen = 0  # utterances of this rank, the skipped ones included
        self.skipped = 0
        self.record(unreadable)

    def record(self, rows: Iterable[tuple[str, str]]) -> None:
        """List files, such as validation audio, that are no part of the share."""
        append_skipped(self.path, rows)

    @property
    def count(self) -> int:
        """Files listed so far, by all ranks and earlier runs."""
        return len(read_skipped(self.path))

    def add(self, window: "StepBatch") -> None:
        """Count a window.

        Raises:
            UserError: too large a share was skipped, or a batch stayed empty because its replacements failed too.
        """
        dropped = [row for batch in window.batches for row in batch.skipped]
        self.record(dropped)
        self.skipped += len(dropped)
        self.seen += len(dropped) + sum(len(batch.ids) for batch in window.batches)
        check_share(self.skipped, self.seen, self.max_skipped, f"{self.path} says why")
        for batch in window.batches:
            if not batch.ids:
                path, reason = batch.skipped[-1]
                raise UserError(
                    f"a whole batch and the {len(batch.skipped)} utterances drawn for it could not be decoded, "
                    f"the last of them {path} ({reason}); {self.path} lists them"
                )

    def state_dict(self) -> dict[str, int]:
        return {"seen": self.seen, "skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.seen, self.skipped = state_dict["seen"], state_dict["skipped"]
