"""The scores that s3prl does not compute: MTWV (QbE) and DER (SD)."""

from collections.abc import Collection, Iterable, Mapping
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.signal import medfilt

from distiller.common.files import disk_errors
from upstream.errors import UserError

# NIST's spoken term detection cost as in QUESST 2014: prior of a target, cost of a miss and of a false alarm
TARGET_PRIOR, MISS_COST, FALSE_ALARM_COST = 0.0008, 100.0, 1.0
BETA = FALSE_ALARM_COST * (1 - TARGET_PRIOR) / (MISS_COST * TARGET_PRIOR)  # 12.49
MISSING_SCORE = -10.0  # for (query, document) pairs that the system did not list

DIARIZATION_MEDIANS = (1, 11)  # frames
DIARIZATION_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)

Segment = tuple[float, float, str]  # start and end in seconds, speaker


def read_detections(path: Path) -> dict[str, dict[str, float]]:
    """s3prl's `benchmark.stdlist.xml` as query -> document -> score.

    Raises:
        UserError: the file is missing or something else.
    """
    try:
        root = ElementTree.parse(path).getroot()
        return {
            terms.attrib["termid"]: {term.attrib["file"]: float(term.attrib["score"]) for term in terms}
            for terms in root.iter("detected_termlist")
        }
    except (OSError, ElementTree.ParseError, KeyError, ValueError) as error:
        raise UserError(f"{path} is not a list of detected terms: {error}") from None


def read_query_truth(path: Path) -> dict[str, set[str]]:
    """A QUESST ground truth (`LEXEME document channel start duration query ...` lines) as query -> documents.

    Raises:
        UserError: the file is missing or has no such line.
    """
    truth: dict[str, set[str]] = {}
    for fields in _read_fields(path, "LEXEME", 6):
        if fields[5] != "NO_KEYWORD":
            truth.setdefault(fields[5], set()).add(fields[1])
    if not truth:
        raise UserError(f"{path} has no LEXEME line that names a query")
    return truth


def maximum_term_weighted_value(
    detections: Mapping[str, Mapping[str, float]], truth: Mapping[str, Collection[str]], documents: Collection[str]
) -> tuple[float, float]:
    """MTWV and its threshold: max over thresholds of 1 - mean over queries of (P_miss + beta P_fa).

    The mean is over the queries in `truth`, each against every document; a pair without a score counts as -10, as in
    SUPERB's use of QUESST's tool. Rejecting everything scores 0, so MTWV is never negative.

    Raises:
        UserError: a query occurs in no document or in all of them, so its term-weighted value is undefined.
    """
    names, scores, gains = sorted(documents), [], []
    for query, targets in truth.items():
        detected = detections.get(query, {})
        is_target = np.array([name in targets for name in names])
        hits = int(is_target.sum())
        if not 0 < hits < len(names):
            raise UserError(f"query {query} occurs in {hits} of {len(names)} documents; it must be some, but not all")
        scores.append(np.array([detected.get(name, MISSING_SCORE) for name in names]))
        gains.append(np.where(is_target, 1 / hits, -BETA / (len(names) - hits)))
    score, gain = np.concatenate(scores), np.concatenate(gains) / len(truth)
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.diff(score[order], append=-np.inf))
    values = np.cumsum(gain[order])[ends]
    best = int(np.argmax(values))
    return (float(values[best]), float(score[order][ends[best]])) if values[best] > 0 else (0.0, float("inf"))


def score_search(folder: Path, corpus: Path, split: str) -> tuple[float, float]:
    """MTWV and its threshold of a search that s3prl left in `folder`.

    Args:
        corpus: QUESST 2014.
        split: dev; for any other split s3prl searches for the queries of eval.

    Raises:
        UserError: the search or the ground truth is missing.
    """
    name = "dev" if split == "dev" else "eval"
    truth = read_query_truth(corpus / "scoring" / f"groundtruth_quesst14_{name}" / f"quesst14_{name}.rttm")
    documents = [Path(fields[0]).stem for fields in _read_fields(corpus / "scoring" / "language_key_utterances.lst")]
    return maximum_term_weighted_value(read_detections(folder / "benchmark.stdlist.xml"), truth, documents)


def read_rttm(path: Path) -> dict[str, list[Segment]]:
    """`SPEAKER recording channel start duration <NA> <NA> speaker ...` lines as recording -> segments.

    Raises:
        UserError: the file is missing or has no such line.
    """
    turns: dict[str, list[Segment]] = {}
    for fields in _read_fields(path, "SPEAKER", 8):
        start, duration = float(fields[3]), float(fields[4])
        turns.setdefault(fields[1], []).append((start, start + duration, fields[7]))
    return turns


def diarization_error_rate(reference: Mapping[str, list[Segment]], hypothesis: Mapping[str, list[Segment]]) -> float:
    """DER in percent over the reference's recordings: (miss + false alarm + confusion) / speaker time.

    No collar; overlapping speech is scored; within a recording, speakers are mapped one to one by most common time.
    """
    counted = [_diarization_errors(turns, hypothesis.get(recording, [])) for recording, turns in reference.items()]
    errors, total = map(sum, zip(*counted, strict=True))
    return 100 * errors / total


def sweep_diarization(folder: Path, test: Path) -> dict[tuple[int, float], float]:
    """DER in percent for SUPERB's ten ways of turning probabilities into segments.

    Args:
        folder: in which s3prl left `frame_shift` and scoring/predictions/RECORDING.h5, with `T_hat` (frame, speaker).
        test: the corpus's folder of that name, with `rttm`.

    Returns:
        (frames of the median filter, threshold) -> DER.

    Raises:
        UserError: the reference is missing, or a recording of it has no prediction.
    """
    with disk_errors(folder / "frame_shift", "read"):
        frame_seconds = int((folder / "frame_shift").read_text()) / 16_000
    reference, predictions = read_rttm(test / "rttm"), folder / "scoring" / "predictions"
    activity = {recording: _read_prediction(predictions / f"{recording}.h5") for recording in reference}
    rates = {}
    for median, threshold in product(DIARIZATION_MEDIANS, DIARIZATION_THRESHOLDS):
        turns = {key: list(_segments(values > threshold, median, frame_seconds)) for key, values in activity.items()}
        rates[median, threshold] = diarization_error_rate(reference, turns)
    return rates


def score_diarization(folder: Path, test: Path) -> tuple[float, int, float]:
    """The lowest of `sweep_diarization`, which is the task's score; its median and threshold."""
    rates = sweep_diarization(folder, test)
    median, threshold = min(rates, key=rates.__getitem__)
    return rates[median, threshold], median, threshold


def _read_prediction(path: Path) -> np.ndarray:  # (frame, speaker)
    import h5py  # of the superb dependency group

    try:
        with h5py.File(path) as file:
            return np.asarray(file["T_hat"])
    except (OSError, KeyError) as error:
        raise UserError(f"{path} has no prediction for this recording of the reference: {error}") from None


def _segments(active: np.ndarray, median: int, frame_seconds: float) -> Iterable[Segment]:
    """Runs of active frames of each speaker, after a median filter over frames.

    Args:
        active: (frame, speaker) bool.
    """
    smoothed = medfilt(active.astype(np.float32), (median, 1))
    for speaker, frames in enumerate(smoothed.T):
        changes = np.flatnonzero(np.diff(frames.astype(np.int8), prepend=0, append=0))
        for start, end in changes.reshape(-1, 2):
            yield start * frame_seconds, end * frame_seconds, str(speaker)


def _diarization_errors(reference: list[Segment], hypothesis: list[Segment]) -> tuple[float, float]:
    """Seconds of error, and of speech in the reference, in one recording."""
    bounds = np.unique([time for start, end, _ in (*reference, *hypothesis) for time in (start, end)])
    durations = np.diff(bounds)
    truth, guess = _activity(reference, bounds), _activity(hypothesis, bounds)  # (speaker, interval)
    common = (truth * durations) @ guess.T  # (reference speaker, hypothesis speaker) seconds
    correct = common[linear_sum_assignment(common, maximize=True)].sum()
    spoken, guessed = truth.sum(axis=0), guess.sum(axis=0)
    return float(durations @ np.maximum(spoken, guessed) - correct), float(durations @ spoken)


def _activity(turns: list[Segment], bounds: np.ndarray) -> np.ndarray:
    """1 where a speaker speaks: (speaker, interval between bounds)."""
    speakers = sorted({speaker for _, _, speaker in turns})
    active = np.zeros((len(speakers), max(len(bounds) - 1, 0)))
    for start, end, speaker in turns:
        active[speakers.index(speaker), np.searchsorted(bounds, start) : np.searchsorted(bounds, end)] = 1
    return active


def _read_fields(path: Path, kind: str = "", count: int = 1) -> list[list[str]]:
    """The fields of each line that has at least `count`, the first of which is `kind`."""
    with disk_errors(path, "read"):
        lines = [line.split() for line in path.read_text().splitlines()]
    lines = [fields for fields in lines if len(fields) >= count and kind in ("", fields[0])]
    if not lines:
        raise UserError(f"{path} has no {kind or 'such'} line")
    return lines
