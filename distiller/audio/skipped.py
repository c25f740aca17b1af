"""Audio that a run could not use: skipped.csv, and the share of skipped utterances that stops the run."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from distiller.audio.formats import NOT_READ, ending
from distiller.common.files import lock_folder, read_csv, write_csv
from upstream.errors import UserError

GRACE = 100  # utterances: the share is of at least this many, so that one bad file in the first batch stops nothing


class Skipped(NamedTuple):
    """An audio file that cannot be used, and why."""

    path: str
    reason: str


def countable(rows: Iterable[Skipped]) -> list[Skipped]:
    """The rows that count towards the share: not those of formats that are never read."""
    return [row for row in rows if ending(row.path) not in NOT_READ]


def check_share(skipped: int, seen: int, max_skipped: float, where: str, key: str = "corpus.max_skipped") -> None:
    """Raises: UserError: more than `max_skipped` of the `seen` utterances (or of GRACE, if fewer) were skipped."""
    if skipped > max_skipped * max(seen, GRACE):
        raise UserError(
            f"{skipped} of {seen} utterances ({skipped / seen:.1%}) could not be used, more than {key} allows "
            f"({max_skipped:.1%}); {where}"
        )


def read_skipped(path: Path) -> list[Skipped]:
    """The rows of a skipped.csv; none if there is no such file."""
    return [Skipped(**row) for row in read_csv(path)]


def skipped_count(path: Path) -> int:
    """Number of files listed in a skipped.csv by all ranks and earlier runs."""
    return len(read_skipped(path))


def write_skipped(path: Path, rows: Iterable[Skipped]) -> None:
    """Write skipped.csv atomically."""
    write_csv(path, [row._asdict() for row in rows], Skipped._fields)


def append_skipped(path: Path, rows: Iterable[Skipped]) -> None:
    """Add rows to a skipped.csv, each path only once; ranks may do so at the same time.

    Raises:
        UserError: the file cannot be written.
    """
    reasons = {row.path: row for row in rows}
    if not reasons:
        return
    with lock_folder(path.parent, ".busy", wait=True):
        known = {row.path: row for row in read_skipped(path)}
        if not reasons.keys() <= known.keys():
            write_skipped(path, (known | reasons | known).values())  # known rows come first and stay as they are


class SkippedLog:
    """Records, in the main process of a rank, the audio that its steps had to leave out.

    Args:
        path: the skipped.csv, shared by all ranks and by the runs that continue each other.
        max_skipped: largest share of the utterances that may be skipped.
    """

    def __init__(self, path: Path, max_skipped: float) -> None:
        self.path, self.max_skipped = path, max_skipped
        self.seen = 0  # utterances of this rank, including the skipped ones
        self.skipped = 0

    def record(self, skipped: Iterable[Skipped]) -> None:
        """List files that do not count towards the share, such as validation audio."""
        append_skipped(self.path, skipped)

    def add(self, skipped: Sequence[Skipped], decoded: int) -> None:
        """List and count the audio of one step: `skipped` files, and the number of utterances `decoded`.

        Raises:
            UserError: too large a share has been skipped so far.
        """
        self.record(skipped)
        self.skipped += len(skipped)
        self.seen += len(skipped) + decoded
        check_share(self.skipped, self.seen, self.max_skipped, f"{self.path} says why")

    def state_dict(self) -> dict[str, int]:
        return {"seen": self.seen, "skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.seen, self.skipped = state_dict["seen"], state_dict["skipped"]
