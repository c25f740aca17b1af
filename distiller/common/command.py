"""What all commands have in common: the parser, exit codes, signals, and how a mistake is told."""

import argparse
import errno
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from distiller.common.process import is_child, rank
from upstream.errors import UserError

INTERRUPTED = {signal.SIGINT: 130, signal.SIGTERM: 143}  # exit codes


REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}  # what a disk says


class Parser(argparse.ArgumentParser):
    """Raises its complaints instead of printing them with the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


class Interrupted(BaseException):
    """SIGINT or SIGTERM; no KeyboardInterrupt, which Lightning turns into an exit of its own."""


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Turns the two signals into `Interrupted`, and lists those that came: a library may hide it."""
    received: list[int] = []
    process = os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a forked data loader has this handler too: it ends, and raises no alarm about it
            os._exit(0)
        received.append(number)
        raise Interrupted

    before = {number: signal.signal(number, interrupt) for number in INTERRUPTED}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def refusals(output: Path) -> Iterator[None]:
    """A full or forbidden disk is the user's to mend."""
    try:
        yield
    except OSError as error:
        if error.errno in REFUSED:
            raise UserError(f"{error.filename or output} cannot be written: {error.strerror}") from error
        raise


def run_command(command: Callable[[], int | None], continuing: str = "run the same command to continue") -> int:
    """What `command` returns, None as 0; 2 for a mistake of the user's, 130 or 143 when interrupted, with one line."""
    try:
        with interruptible() as received:
            try:
                return command() or 0
            except BaseException:
                if not received:
                    raise
                for number in INTERRUPTED:
                    signal.signal(number, signal.SIG_IGN)
            gc.collect()  # the command's frames are gone, and now their progress bars, which say a last word
            sys.stdout.flush()
            complain(f"interrupted; {continuing}")
            # with any other code of a child Lightning kills its parent, which may be about to end by itself, with -9
            return 0 if is_child() else INTERRUPTED[signal.Signals(received[0])]
    except UserError as error:
        complain(f"error: {' '.join(str(error).split())}")
        return 2


def complain(line: str) -> None:
    print(line if rank() == 0 else f"[rank {rank()}] {line}", file=sys.stderr)
