"""A fresh process for each measurement, so that its peak memory is that of this work alone."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from upstream.errors import UserError


@contextmanager
def process_of(work: Callable[..., None], *arguments: Any) -> Iterator[Connection]:
    """A fresh process for `work(connection, *arguments)`, and the other end of that connection.

    The process ends with the block. Ctrl-C, which a terminal sends to it too, is left to this process.
    """
    context = multiprocessing.get_context("spawn")
    parent_end, child_end = context.Pipe()
    process = context.Process(target=work, args=(child_end, *arguments), daemon=True)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which it inherits
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, before)
    child_end.close()
    try:
        yield parent_end
        process.join(5)
    finally:
        process.kill()
        parent_end.close()


def receive(connection: Connection, target: str) -> Any:
    """What the process of `target` sends next.

    Raises:
        UserError: the process raised it, or ended without an answer.
    """
    try:
        answer = connection.recv()
    except EOFError:
        raise UserError(f"{target}: its process ended before it was measured (out of memory?)") from None
    if isinstance(answer, UserError):
        raise answer
    return answer
