"""Memory in MB whatever the system counts in, and whose licence a teacher has."""

import resource
import sys
from types import SimpleNamespace

import pytest
from torch import nn

from distiller.common.provenance import parameter_count, peak_memory_mb, teacher_licence


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_peak_memory_is_in_megabytes(platform: str, unit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux counts in KiB, macOS in bytes."""
    peaks = {resource.RUSAGE_SELF: 5_000_000 // unit, resource.RUSAGE_CHILDREN: 8_000_000 // unit}
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=peaks[who]))
    assert peak_memory_mb() == pytest.approx(5.0, abs=0.001)
    assert peak_memory_mb(children=True) == pytest.approx(8.0, abs=0.001)


def test_parameters_are_counted() -> None:
    assert parameter_count(nn.Linear(3, 4)) == 16


@pytest.mark.parametrize(
    ("teacher", "licence"),
    [
        ("facebook/hubert-base-ls960", "Apache-2.0"),
        ("microsoft/wavlm-base", "see the licence that microsoft/wavlm's own card names"),
        ("someone/else", "as the teacher's"),
        ("", "as the teacher's"),
    ],
)
def test_the_licence_is_that_of_the_teachers_card(teacher: str, licence: str) -> None:
    assert teacher_licence(teacher) == licence
