"""This process instead of a fresh one, which forgets afterwards what it has built."""

from collections.abc import Iterator

import pytest
import torch

from distiller.steps import step, training
from tests.distiller.benchmarks.conftest import this_process


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(training, "fresh_process", this_process)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for cached in (step.module_of, step.function_of, step.matrices, step.teacher_shape):
        cached.cache_clear()
