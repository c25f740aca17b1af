"""Bits per second, PNMI and purities, against numbers worked out by hand and against scikit-learn."""

import math
from itertools import pairwise

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from distiller.codebooks.scores import agreement, deduplicated, entropy, rate, together

# 8 frames: phone 0 has units 0 0 0 1, phone 1 has 1 1, phone 2 has 2 2; unit 3 is never used
PHONES = np.array([0, 0, 0, 0, 1, 1, 2, 2])
UNITS = np.array([0, 0, 0, 1, 1, 1, 2, 2])


def test_counts_of_phones_and_units_together() -> None:
    assert together(PHONES, UNITS, (3, 4)).tolist() == [[3, 1, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0]]


def test_agreement_by_hand() -> None:
    found = agreement(together(PHONES, UNITS, (3, 4)))
    # H(phone) = 1.5 bits; H(phone | unit) = 3/8 x H(1/3, 2/3) = 3/8 x (log2 3 - 2/3)
    assert found.pnmi == pytest.approx((1.5 - 3 / 8 * (math.log2(3) - 2 / 3)) / 1.5)
    assert found.phone_purity == pytest.approx((3 + 2 + 2) / 8)
    assert found.cluster_purity == pytest.approx((3 + 2 + 2) / 8)


def test_purities_differ_where_a_phone_has_many_units() -> None:
    found = agreement(np.array([[2, 1, 1, 0], [0, 0, 0, 4]]))
    assert (found.pnmi, found.phone_purity, found.cluster_purity) == (1.0, 1.0, 0.75)


def test_pnmi_is_scikit_learns() -> None:
    random = np.random.default_rng(0)
    phones, units = random.integers(5, size=400), random.integers(9, size=400)
    units[phones == 2] = 3
    entropy_of_phones = -sum(share * math.log(share) for share in np.bincount(phones) / 400)
    expected = mutual_info_score(phones, units) / entropy_of_phones
    assert agreement(together(phones, units, (7, 12))).pnmi == pytest.approx(expected, rel=1e-9)


def test_units_without_any_relation_to_phones_tell_nothing() -> None:
    found = agreement(np.ones((4, 5), np.int64))
    assert found.pnmi == pytest.approx(0.0, abs=1e-12)
    assert (found.phone_purity, found.cluster_purity) == (pytest.approx(0.25), pytest.approx(0.2))


def test_entropy_and_rate_by_hand() -> None:
    assert entropy(np.array([[2, 1], [0, 1]])) == 1.5
    # 8 units in 0.16 s; shares 4/8, 2/8, 2/8
    assert rate([[7, 7, 1, 1], [3, 3, 7, 7]], 0.16) == pytest.approx((50.0, 1.5, 75.0))
    assert rate([[4, 4, 4]], 1.0) == (3.0, 0.0, 0.0)


def test_deduplication_keeps_the_time() -> None:
    assert deduplicated([17, 17, 17, 0, 0, 17]) == ([17, 0, 17], [3, 2, 1])
    assert deduplicated([0]) == ([0], [1])
    random = np.random.default_rng(1)
    units = random.integers(3, size=200).tolist()
    kept, durations = deduplicated(units)
    assert np.repeat(kept, durations).tolist() == units
    assert all(one != other for one, other in pairwise(kept))
