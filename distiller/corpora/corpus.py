"""Opening a corpus: training cuts, validation cuts, and the audio that cannot be used."""

import hashlib
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lhotse.cut.data import DataCut

from distiller.audio.decoding import Decoder, Undecodable, source_path
from distiller.audio.formats import endings
from distiller.audio.inventory import Amount, Inventory
from distiller.audio.skipped import Skipped, check_share, countable
from distiller.audio.windows import windows
from distiller.common.files import expanded
from distiller.common.values import digest
from distiller.corpora.config import SYNTHETIC, CorpusConfig
from distiller.corpora.prepared import original_id
from distiller.corpora.scanning import locate, scan_cached
from distiller.synthesis.splits import SPLITS, load_split
from upstream.config import SAMPLE_RATE
from upstream.errors import UserError, require


@dataclass(frozen=True)
class Corpus:
    """An opened corpus; the order of both sets is fixed."""

    train: list[DataCut]
    validation: list[DataCut]
    skipped: list[Skipped]  # unreadable headers, audio shorter than one frame, formats that are not read
    inventory: Inventory

    def identity(self) -> dict[str, Any]:
        """What identifies a corpus, wherever its files are: its size, and a digest of ids and durations."""
        cuts = [[(cut.id, round(cut.duration, 4)) for cut in part] for part in (self.train, self.validation)]
        found = {"utterances": sum(map(len, cuts)), "hours": round(hours(self.train + self.validation), 4)}
        return found | {"ids_and_durations": digest(cuts)[:16]}


def open_corpus(config: CorpusConfig, decoder: Decoder, cache: Path | None = None) -> Corpus:
    """Find the audio of a recipe, check its headers, and set aside what cannot be used.

    A recording longer than `config.longest` is split into windows, or left out. All its windows are in the same set,
    since held-out recordings are chosen before.

    Args:
        decoder: decides what is too short.
        cache: folder for the result of the scan, so that the next start need not rescan; None: write nothing.

    Raises:
        UserError: the corpus or a subset does not exist, may not be read or holds no audio, no audio is within the
            bounds on duration, or more than max_skipped of it is unreadable.
    """
    train, validation, skipped = _scanned(config, cache)
    train, validation = (with_enough_samples(cuts, decoder, skipped) for cuts in (train, validation))
    _check_skipped(config, skipped, len(train) + len(validation))
    found = train + validation
    inventory = _inventory(config, found, skipped)
    longest = config.longest if config.window is None else math.inf
    train, validation = (
        [cut for cut in cuts if config.min_seconds <= cut.duration <= longest] for cuts in (train, validation)
    )
    if not config.validation and config.path != SYNTHETIC:
        train, validation = _hold_out(train, config.validation_share)
    if not train or not validation:
        durations = [cut.duration for cut in found]
        raise UserError(
            f"not enough audio in {config.path}: of {len(found)} utterances ({min(durations, default=0):.3g} to "
            f"{max(durations, default=0):.3g} s long), {len(train)} can be used for training and {len(validation)} for "
            f"validation within {config.min_seconds:g} to {longest:g} s (corpus.min_seconds, .max_seconds, "
            ".batch_seconds, .window_seconds)"
        )
    if config.window is not None:
        train, validation = (_split(cuts, config.longest, config.window) for cuts in (train, validation))
    return Corpus(train, validation, skipped, inventory)


def open_audio(path: str, longest: float, decoder: Decoder, cache: Path | None = None) -> list[DataCut]:
    """All audio of a corpus, for measurements: nothing is held out, and nothing is too long.

    Cuts of more than `longest` seconds are split into windows of at most that. For the synthetic corpus, its training
    part is used. Warns if some of the audio cannot be used.

    Args:
        path: as CorpusConfig.path.
        decoder, cache: as `open_corpus`.

    Raises:
        UserError: the corpus does not exist, may not be read or holds no audio.
    """
    usable, skipped = all_audio(path, [], decoder, cache)
    if skipped:
        warnings.warn(
            f"{len(skipped)} of {len(usable) + len(skipped)} utterances of {path} cannot be used; {_first(skipped)}",
            stacklevel=2,
        )
    return _split(usable, longest, longest)


def all_audio(
    path: str, subsets: list[str], decoder: Decoder, cache: Path | None = None
) -> tuple[list[DataCut], list[Skipped]]:
    """Every utterance of a corpus, complete, in a fixed order; and the audio that cannot be used.

    Args:
        path: as CorpusConfig.path.
        subsets: of the path; for the synthetic corpus, its splits (none: its training part).
        decoder, cache: as `open_corpus`.

    Raises:
        UserError: the corpus or a subset does not exist, may not be read or holds no audio.
    """
    if path == SYNTHETIC:
        require(set(subsets) <= set(SPLITS), "--subsets", subsets, f"of {', '.join(SPLITS)}")
        return [cut for name in subsets or ["train"] for cut in load_split(name)], []
    root, found = locate(expanded(path).absolute(), subsets)
    scans = [scan_cached(source, root, cache) for source in found]
    skipped = [row for _, rows in scans for row in rows]
    usable = with_enough_samples([cut for cuts, _ in scans for cut in cuts], decoder, skipped)
    if not usable:
        if unusable := countable(skipped):
            raise UserError(f"none of the {len(unusable)} utterances of {path} can be used; {_first(unusable)}")
        raise UserError(f"{path} holds no audio")
    return usable, skipped


def hours(cuts: Iterable[DataCut]) -> float:
    """Hours of audio."""
    return math.fsum(cut.duration for cut in cuts) / 3600


def with_enough_samples(cuts: Iterable[DataCut], decoder: Decoder, skipped: list[Skipped]) -> list[DataCut]:
    """The cuts that are long enough for the decoder; the others are added to `skipped`."""
    kept = []
    for cut in cuts:
        try:
            decoder.check_length(math.ceil(cut.duration * SAMPLE_RATE - 1e-6))
            kept.append(cut)
        except Undecodable as error:
            skipped.append(Skipped(source_path(cut), str(error)))
    return kept


def _scanned(config: CorpusConfig, cache: Path | None) -> tuple[list[DataCut], list[DataCut], list[Skipped]]:
    """The training cuts, the cuts of the validation subsets, and files of either without a readable header."""
    if config.path == SYNTHETIC:
        return load_split("train"), load_split("validation"), []
    root, sources = locate(expanded(config.path).absolute(), config.subsets + config.validation)
    scans = [scan_cached(source, root, cache) for source in sources]
    of_train = len(sources) - len(config.validation)
    train = [cut for cuts, _ in scans[:of_train] for cut in cuts]
    validation = [cut for cuts, _ in scans[of_train:] for cut in cuts]
    return train, validation, [row for _, rows in scans for row in rows]


def _split(cuts: Iterable[DataCut], longest: float, window: float) -> list[DataCut]:
    """The cuts, with those longer than `longest` replaced by their windows."""
    return [part for cut in cuts for part in (windows(cut, window) if cut.duration > longest else [cut])]


def _inventory(config: CorpusConfig, cuts: list[DataCut], skipped: list[Skipped]) -> Inventory:
    """How everything that was found is used."""
    short = [cut for cut in cuts if cut.duration < config.min_seconds]
    long = [cut for cut in cuts if cut.duration > config.longest]
    whole = [cut for cut in cuts if config.min_seconds <= cut.duration <= config.longest]
    split, long = ([], long) if config.window is None else (long, [])
    count = sum(len(windows(cut, config.window or math.inf)) for cut in split)
    groups = Amount.of(whole), Amount.of(split), count, Amount.of(short), Amount.of(long)
    unusable, not_read = len(countable(skipped)), endings(row.path for row in skipped)
    return Inventory(*groups, unusable, not_read, config.min_seconds, config.longest, config.window)


def _check_skipped(config: CorpusConfig, skipped: list[Skipped], usable: int) -> None:
    skipped = countable(skipped)
    if skipped and not usable:
        raise UserError(f"none of the {len(skipped)} utterances of {config.path} can be used; {_first(skipped)}")
    if skipped:
        check_share(len(skipped), usable + len(skipped), config.max_skipped, _first(skipped))


def _first(skipped: list[Skipped]) -> str:
    return f"the first is {skipped[0].path} ({skipped[0].reason})"


def _hold_out(cuts: list[DataCut], share: float) -> tuple[list[DataCut], list[DataCut]]:
    """The training cuts, and about `share` of the cuts for validation; at least one each, if there are two.

    Each cut is assigned by its id alone, so adding or removing files does not move others; copies of a recording at
    other speeds are in the same set.
    """

    def position(cut: DataCut) -> float:
        return int.from_bytes(hashlib.sha256(original_id(cut.id).encode()).digest()[:8]) / 2**64  # uniform over [0, 1)

    positions = sorted(set(map(position, cuts)))
    bound = min([max([share, *positions[:1]]), *positions[-2:-1]])
    return [cut for cut in cuts if position(cut) > bound], [cut for cut in cuts if position(cut) <= bound]
