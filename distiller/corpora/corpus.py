"""Opening a corpus: cuts to train on, cuts to validate on, and what was set aside."""

import hashlib
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from distiller.audio.skipped import Skipped, check_share
from distiller.common.files import expanded
from distiller.corpora.config import EMBEDDED, CorpusConfig
from upstream.errors import UserError

if TYPE_CHECKING:  # Lhotse and torch are loaded when a corpus is opened, not when a recipe is read
    from lhotse import CutSet
    from lhotse.cut.data import DataCut


@dataclass(frozen=True)
class Corpus:
    """An opened corpus; both sets are in memory, their order is fixed."""

    train: "CutSet"
    validation: "CutSet"
    skipped: list[Skipped]  # unreadable headers, and clips shorter than one frame
    too_short: int = 0  # utterances below min_seconds
    too_long: int = 0  # utterances above max_seconds or batch_seconds


def open_corpus(config: CorpusConfig, cache: Path | None = None, min_samples: int = 400) -> Corpus:
    """Find the audio of a recipe, check its headers, and set aside what cannot be used.

    Args:
        cache: folder for the outcome of the scan, so that the next start need not scan; None: write nothing.
        min_samples: at 16 kHz, the least that gives a frame.

    Raises:
        UserError: no such corpus or subset, no audio in it, no permission, none within the bounds on duration, or more
            than max_skipped of it unreadable.
    """
    from lhotse import CutSet

    train, validation, skipped = _embedded() if config.path == EMBEDDED else _scanned(config, cache)
    train, validation = _whole(train, skipped, min_samples), _whole(validation, skipped, min_samples)
    _check_skipped(config, skipped, len(train) + len(validation))
    durations = [cut.duration for cut in train + validation]
    train, validation = (
        [cut for cut in cuts if config.min_seconds <= cut.duration <= config.longest] for cuts in (train, validation)
    )
    if not config.validation and config.path != EMBEDDED:
        train, validation = _hold_out(train, config.validation_share)
    if not train or not validation:
        shortest, longest = min(durations, default=0), max(durations, default=0)
        raise UserError(
            f"{config.path} has too little to train and validate on: {len(train)} and {len(validation)} of its "
            f"{len(durations)} utterances ({shortest:.3g} to {longest:.3g} s long) last "
            f"from {config.min_seconds:g} to {config.longest:g} s (corpus.min_seconds, .max_seconds, .batch_seconds)"
        )
    return Corpus(
        CutSet.from_cuts(train),
        CutSet.from_cuts(validation),
        skipped,
        too_short=sum(duration < config.min_seconds for duration in durations),
        too_long=sum(duration > config.longest for duration in durations),
    )


def open_audio(
    path: str, key: str, longest: float, cache: Path | None = None, min_samples: int = 400
) -> "list[DataCut]":
    """All audio of a corpus, to measure something on: nothing is held out, and no length is too long.

    A cut of more than `longest` seconds comes in windows of that length, ID-0, ID-1, ... The embedded corpus gives its
    training part. Warns when some of the audio cannot be used.

    Args:
        path, key: where the audio is, as CorpusConfig.path, and what the user named that by.
        cache, min_samples: as `open_corpus`.

    Raises:
        UserError: no such corpus, no audio in it, no permission.
    """
    config = CorpusConfig(path=path, max_skipped=1.0)
    cuts, _, skipped = _embedded() if path == EMBEDDED else _scanned(config, cache, key)
    usable = _whole(cuts, skipped, min_samples)
    _check_skipped(config, skipped, len(usable))
    if not usable:
        raise UserError(f"{key} is {path!r}, which holds no audio")
    if skipped:
        first = f"{skipped[0].path} ({skipped[0].reason})"
        total = len(usable) + len(skipped)
        warnings.warn(
            f"{len(skipped)} of {total} utterances of {path} cannot be used; the first is {first}", stacklevel=2
        )
    return _whole([window for cut in usable for window in _windows(cut, longest)], [], min_samples)


def hours(cuts: "CutSet") -> float:
    """Hours of audio."""
    return math.fsum(cut.duration for cut in list(cuts)) / 3600


def _embedded() -> "tuple[list[DataCut], list[DataCut], list[Skipped]]":
    from distiller.synthesis.splits import load_split

    return list(load_split("train")), list(load_split("validation")), []


def _scanned(
    config: CorpusConfig, cache: Path | None, key: str = "corpus.path"
) -> "tuple[list[DataCut], list[DataCut], list[Skipped]]":
    """The cuts of the subsets to train and to validate on, and what of either has no readable header."""
    from distiller.corpora.scanning import locate, scan_cached

    path = expanded(config.path).absolute()
    root, sources = locate(path, config.subsets + config.validation, key)
    scans = [scan_cached(source, root, cache) for source in sources]
    of_train = len(sources) - len(config.validation)
    train = [cut for cuts, _ in scans[:of_train] for cut in cuts]
    validation = [cut for cuts, _ in scans[of_train:] for cut in cuts]
    return train, validation, [row for _, rows in scans for row in rows]


def _whole(cuts: "list[DataCut]", skipped: list[Skipped], min_samples: int) -> "list[DataCut]":
    """The cuts that have a frame; the others are added to `skipped`."""
    from distiller.audio.decoding import SAMPLE_RATE, source_path, too_few

    kept = []
    for cut in cuts:
        samples = math.ceil(cut.duration * SAMPLE_RATE - 1e-6)
        if samples < min_samples:
            skipped.append(Skipped(source_path(cut), too_few(samples, min_samples)))
        else:
            kept.append(cut)
    return kept


def _windows(cut: "DataCut", longest: float) -> "list[DataCut]":
    """A cut that is too long in parts, the last of them the shortest; any other as it is."""
    if cut.duration <= longest:
        return [cut]
    parts: list[DataCut] = list(cut.cut_into_windows(longest))  # type: ignore[arg-type]
    for part in parts:
        if span := (part.custom or {}).get("span"):  # of a prepared corpus: no longer the whole of a member
            part.custom = {"span": span | {"whole": False}}
    return parts


def _check_skipped(config: CorpusConfig, skipped: list[Skipped], usable: int) -> None:
    if not skipped:
        return
    first = f"the first is {skipped[0].path} ({skipped[0].reason})"
    if not usable:
        raise UserError(f"none of the {len(skipped)} utterances of {config.path} can be used; {first}")
    check_share(len(skipped), usable + len(skipped), config.max_skipped, first)


def _hold_out(cuts: "list[DataCut]", share: float) -> "tuple[list[DataCut], list[DataCut]]":
    """What is left, and about `share` of the cuts: at least one, and one at least is left.

    The ids decide, each on its own: files that come or go move no others.
    """

    def position(cut: "DataCut") -> float:
        return int.from_bytes(hashlib.sha256(cut.id.encode()).digest()[:8]) / 2**64  # uniform over [0, 1)

    positions = sorted(map(position, cuts))
    bound = min([max([share, *positions[:1]]), *positions[-2:-1]])
    return [cut for cut in cuts if position(cut) > bound], [cut for cut in cuts if position(cut) <= bound]
