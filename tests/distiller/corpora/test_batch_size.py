"""How much audio fills a device: the arithmetic, on devices that are made up, and one answer for all processes."""

from pathlib import Path

import pytest

from distiller.corpora.batch_size import agreed_seconds, fitting_seconds
from upstream.config import SAMPLE_RATE

GB = 1e9


def made_up(quadratic: float):
    """2 GB of weights, 40 MB for each second of audio, and `quadratic` bytes for each second, squared, of a wav."""

    def peak(utterances: int, samples: int) -> float:
        seconds = samples / SAMPLE_RATE
        return 2 * GB + utterances * (0.04 * GB * seconds + quadratic * seconds**2)

    return peak


@pytest.mark.parametrize("quadratic", [0.0, 2e6])
@pytest.mark.parametrize("longest", [0.7, 3.0, 15.6, 35.2])
@pytest.mark.parametrize("memory", [8 * GB, 68 * GB])
def test_memory_is_filled_and_never_exceeded(memory: float, longest: float, quadratic: float) -> None:
    peak = made_up(quadratic)
    seconds = fitting_seconds(longest, memory, peak)
    whole = round(seconds / longest)
    assert seconds == pytest.approx(whole * longest)
    samples = int(longest * SAMPLE_RATE)
    assert peak(whole, samples) <= memory * (1 + 1e-6) < peak(whole + 1, samples + 1) * (1 + 2e-6)
    for shorter in (longest / 2, longest / 5):
        assert peak(int(seconds / shorter), int(shorter * SAMPLE_RATE)) <= memory * (1 + 1e-6)


def test_one_utterance_at_least() -> None:
    assert fitting_seconds(35.0, 2.1 * GB, made_up(0.0)) == 35.0
    assert fitting_seconds(35.0, 80 * GB, lambda utterances, samples: GB) > 1e6  # nothing that grows: no limit


def test_no_large_step_is_tried() -> None:
    tried = []

    def peak(utterances: int, samples: int) -> float:
        tried.append(utterances * samples / SAMPLE_RATE)
        return sum(tried)

    for longest in (0.5, 15.6, 29.0, 35.0):
        fitting_seconds(longest, GB, peak)
    assert max(tried) <= 70.0
    assert len(tried) == 8


def test_processes_that_start_together_agree(tmp_path: Path) -> None:
    assert agreed_seconds(tmp_path, lambda: 460.0) == 460.0
    assert agreed_seconds(tmp_path, lambda: pytest.fail("measured again")) == 460.0
