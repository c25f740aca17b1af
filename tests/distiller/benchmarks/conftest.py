"""A thread instead of a fresh process: what is measured runs here, without the seconds that imports take."""

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import pytest


@contextmanager
def thread_of(work: Callable[..., None], *arguments: Any) -> Iterator[Connection]:
    here, there = multiprocessing.Pipe()

    def run() -> None:
        work(there, *arguments)
        there.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield here
    finally:
        here.close()
        thread.join(10)


@pytest.fixture
def in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("inference", "long", "training"):
        monkeypatch.setattr(f"distiller.benchmarks.{module}.process_of", thread_of)
