import random
from pathlib import Path

import h5py
import numpy as np
import pytest

from downstream_recipes.scores.error_rates import (
    BETA,
    diarization_error_rate,
    maximum_term_weighted_value,
    read_detections,
    read_query_truth,
    read_rttm,
    sweep_diarization,
)
from upstream.errors import UserError

DOCUMENTS = ["a", "b", "c", "d"]
DETECTIONS = {"q1": {"a": 0.9, "b": 0.8, "c": 0.1, "d": 0.0}, "q2": {"a": 0.2, "b": 0.7, "c": 0.85}}
TRUTH = {"q1": {"a"}, "q2": {"b", "c"}}


def test_mtwv_takes_the_best_threshold():
    # at .85 q1 misses nothing and q2 one of two; at .8 a false alarm costs 12.49 / 3 / 2
    assert maximum_term_weighted_value(DETECTIONS, TRUTH, DOCUMENTS) == pytest.approx((0.75, 0.85))


def test_mtwv_counts_queries_that_were_never_searched():
    # QUESST's other languages: SUPERB searches English only, yet averages over every query
    value, _ = maximum_term_weighted_value(DETECTIONS, TRUTH | {"q3": {"a"}}, DOCUMENTS)
    assert value == pytest.approx(0.5)


def test_mtwv_weighs_a_false_alarm_by_beta():
    documents = [str(number) for number in range(101)]
    value, threshold = maximum_term_weighted_value({"q": {"0": 0.9, "1": 0.8}}, {"q": {"1"}}, documents)
    assert pytest.approx(12.49) == BETA
    assert (value, threshold) == pytest.approx((1 - 12.49 / 100, 0.8))


def test_mtwv_accepts_tied_scores_together():
    detections = {"q1": {"a": 0.5, "b": 0.5}}
    assert maximum_term_weighted_value(detections, {"q1": {"a"}}, DOCUMENTS) == (0.0, float("inf"))


def test_mtwv_needs_queries_with_targets_and_nontargets():
    with pytest.raises(UserError, match="query q1 occurs in 4 of 4"):
        maximum_term_weighted_value(DETECTIONS, {"q1": set(DOCUMENTS)}, DOCUMENTS)


def test_detections_and_truth_are_read(tmp_path: Path):
    xml = tmp_path / "benchmark.stdlist.xml"
    xml.write_text(
        '<stdlist language="english"><detected_termlist termid="q1">'
        '<term file="a" channel="1" score="1.5000" decision="NO"/>'
        '<term file="b" channel="1" score="-0.2500" decision="NO"/></detected_termlist></stdlist>'
    )
    rttm = tmp_path / "dev.rttm"
    rttm.write_text(
        "SPEAKER a 1 0 1 <NA> <NA> x <NA>\nLEXEME a 1 0.00 1.20 q1 lex x <NA>\nLEXEME b 1 0 1 NO_KEYWORD lex x <NA>\n"
    )
    assert read_detections(xml) == {"q1": {"a": 1.5, "b": -0.25}}
    assert read_query_truth(rttm) == {"q1": {"a"}}
    for read in (read_detections, read_query_truth, read_rttm):
        with pytest.raises(UserError, match="missing"):
            read(tmp_path / "missing")
    with pytest.raises(UserError, match="has no LEXEME"):
        read_query_truth(xml)


def test_der_of_a_hand_made_recording():
    reference = {"r": [(0.0, 10.0, "A"), (8.0, 12.0, "B")]}  # 14 speaker seconds
    # 8-9: B missed; 9-10: A missed; 12-13: false alarm
    hypothesis = {"r": [(0.0, 9.0, "x"), (9.0, 13.0, "y")]}
    assert diarization_error_rate(reference, hypothesis) == pytest.approx(100 * 3 / 14)
    # one speaker for everything: 4 s of B are missed or confused with A, of which 2 s overlap A
    assert diarization_error_rate(reference, {"r": [(0.0, 12.0, "x")]}) == pytest.approx(100 * 4 / 14)
    assert diarization_error_rate(reference, {}) == pytest.approx(100)


def random_turns(seed: int) -> tuple[dict, dict]:
    rng = random.Random(seed)

    def turn(end: float, speakers: str) -> tuple[float, float, str]:
        start = rng.uniform(0, end)
        return round(start, 2), round(start + rng.uniform(0.3, 5), 2), rng.choice(speakers)

    reference = {f"r{i}": [turn(30, "AB" if i < 2 else "ABC") for _ in range(12)] for i in range(4)}
    return reference, {f"r{i}": [turn(33, "01") for _ in range(10)] for i in range(4)}


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (0, 102.32305506810395),
        (1, 97.10381574424201),
        (2, 88.96139206090267),
        (3, 107.69382133018499),
        (4, 110.54645970657029),
    ],
)
def test_der_equals_pyannote_metrics(seed: int, expected: float):
    """Expected: DiarizationErrorRate(collar=0, skip_overlap=False) of pyannote.metrics 4.2.0."""
    assert diarization_error_rate(*random_turns(seed)) == pytest.approx(expected, rel=1e-12)


def test_the_diarization_sweep_reads_s3prl_predictions(tmp_path: Path):
    probabilities = np.zeros((100, 2), dtype=np.float32)  # 2 s of 20 ms frames
    probabilities[:50, 0] = 0.65
    probabilities[70:73, 1] = 0.9  # a click that the median filter removes
    (tmp_path / "scoring" / "predictions").mkdir(parents=True)
    with h5py.File(tmp_path / "scoring" / "predictions" / "r.h5", "w") as file:
        file["T_hat"] = probabilities
    (tmp_path / "frame_shift").write_text("320\n")
    rttm = tmp_path / "rttm"
    rttm.write_text("SPEAKER r 1 0.00 1.00 <NA> <NA> A <NA>\n")
    rates = sweep_diarization(tmp_path, tmp_path)
    assert len(rates) == 10
    assert rates[1, 0.5] == pytest.approx(6)
    assert rates[11, 0.5] == pytest.approx(0)
    assert rates[1, 0.7] == pytest.approx(106)
    assert rates[11, 0.7] == pytest.approx(100)
    rttm.write_text("SPEAKER other 1 0.00 1.00 <NA> <NA> A <NA>\n")
    with pytest.raises(UserError, match=r"other\.h5"):
        sweep_diarization(tmp_path, tmp_path)
