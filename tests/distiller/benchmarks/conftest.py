"""This process instead of a fresh one: what is measured runs here, without the seconds that imports take."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch


@contextmanager
def this_process(target: str) -> Iterator[Callable[..., Any]]:
    yield lambda work, *arguments: work(*arguments)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in ("inference", "long"):
        monkeypatch.setattr(f"distiller.benchmarks.{module}.fresh_process", this_process)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
