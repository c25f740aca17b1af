"""Where measurements run: on which device, and in a fresh process, so that its peak memory is its own."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.resource_tracker import ensure_running
from typing import Any

import torch

from upstream.errors import UserError


def require_device(device: str) -> None:
    """Raises: UserError: `device` is cuda and there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda, but this machine has only a cpu")


@contextmanager
def fresh_process(target: str) -> Iterator[Callable[..., Any]]:
    """A fresh process that ends with the block, as a function: `call(work, *arguments)` returns the result of `work`.

    Ctrl-C, which a terminal also sends to it, is handled by this process.

    Args:
        target: what is measured, for the error.

    Raises:
        UserError: (from `call`) the work raised it, or the process ended without an answer.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there,), daemon=True)
    ensure_running()  # starting multiprocessing's resource tracker would unblock the signal again
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # the child inherits it; here a signal waits
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    there.close()

    def call(work: Callable[..., Any], *arguments: Any) -> Any:
        try:
            here.send((work, arguments))
            answer = here.recv()
        except (EOFError, ConnectionError):
            raise UserError(f"{target}: its process ended before it was measured (out of memory?)") from None
        if isinstance(answer, UserError):
            raise answer
        return answer

    try:
        yield call
    finally:
        process.kill()  # it has nothing to save
        here.close()


def _serve(connection: Connection) -> None:
    while True:
        try:
            work, arguments = connection.recv()
        except EOFError:  # the parent ended
            return
        try:
            connection.send(work(*arguments))
        except UserError as error:
            connection.send(error)
