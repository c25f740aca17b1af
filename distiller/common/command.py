"""Shared by every command: parser, error line, exit codes, and handling of interruptions."""

import argparse
import errno
import gc
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from distiller.common.files import require_utf8
from distiller.common.process import is_child, rank
from upstream.errors import UserError, nearest

FAILED, REFUSED = 1, 2  # exit codes: something failed on the machine; the user has something to correct
INTERRUPTED = {signal.SIGINT: 130, signal.SIGTERM: 143}  # exit codes
# The operating system's errors about a disk, path, permission or limit; any other OSError is a bug.
SURROUNDINGS = frozenset(
    {
        errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ELOOP,
        errno.ENAMETOOLONG, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN,
    }
)  # fmt: skip


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that keeps the layout of its texts, allows no abbreviations, and raises its errors.

    Args:
        any_path: paths need not be UTF-8; the libraries that read audio and weights accept only UTF-8.
    """

    def __init__(self, any_path: bool = False, **settings: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings)
        self.any_path = any_path

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore  # has overloads
        parsed = super().parse_known_args(args, namespace)
        try:
            folder = os.getcwd()
        except FileNotFoundError:
            raise UserError("the current folder has been removed; change to another") from None
        for text in () if self.any_path else (folder, *(sys.argv[1:] if args is None else args)):
            require_utf8(text)
        return parsed

    def error(self, message: str) -> NoReturn:
        """Raises: UserError: always; names the option that was probably meant."""
        unknown = re.match(r"unrecognized arguments: --?([\w-]+)", message)
        if not unknown:
            raise UserError(f"{message} (see --help)")
        options = [name[2:] for action in self._actions for name in action.option_strings if name.startswith("--")]
        meant = nearest(unknown[1], options)
        raise UserError(
            f"option --{unknown[1]} does not exist; " + (f"did you mean --{meant}?" if meant else "see --help")
        )


def comma_separated(kind: Callable[[str], Any], **words: Any) -> Callable[[str], Any]:
    """An argparse type: "4,6,8" as a list of `kind`, and each of `words` as its value."""

    def parse(text: str) -> Any:
        return words[text] if text in words else [kind(part) for part in text.split(",")]

    parse.__name__ = f"{kind.__name__} list"  # argparse names it: invalid int list value: '4,x'
    return parse


class Failed(Exception):
    """A failure that is not the user's mistake: an error line for each argument, and exit code 1."""


class Interrupted(BaseException):
    """SIGINT or SIGTERM. Not a KeyboardInterrupt, which libraries catch."""


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Turns the two signals into `Interrupted`, and lists those received: a library may hide the exception."""
    received: list[int] = []
    process = os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a forked data-loading worker inherits this handler: it just ends
            os._exit(0)
        received.append(number)
        if hasattr(signal, "SIGCHLD"):  # a DataLoader would raise if its workers are killed, as at the end of a job
            before.setdefault(signal.SIGCHLD, signal.signal(signal.SIGCHLD, signal.SIG_DFL))
        raise Interrupted

    before: dict[int, Any] = {number: signal.signal(number, interrupt) for number in INTERRUPTED}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_command(command: Callable[[], int | None], continuing: str = "run the same command to continue") -> int:
    """The exit code of `command`: its result (None: 0), 1 for `Failed`, 2 for a user's mistake, 130 or 143 when
    interrupted.

    A mistake, a disk that refuses and an interruption are one line on stderr.

    Args:
        continuing: what a user can do after an interruption.
    """
    settle_streams()
    try:
        return _exit_code(command, continuing)
    finally:
        flush_or_drop()


def _exit_code(command: Callable[[], int | None], continuing: str) -> int:
    try:
        with interruptible() as received:
            try:
                code = command() or 0
                sys.stdout.flush()  # here, where errors become one line
                return code
            except BaseException:
                if not received:
                    raise
                for number in INTERRUPTED:
                    signal.signal(number, signal.SIG_IGN)
            gc.collect()  # also deletes the progress bars of the command's frames, which print a last line
            sys.stdout.flush()
            complain(f"interrupted; {continuing}")
            # any other exit code of a child makes Lightning kill its parent, which may be about to end by itself
            return 0 if is_child() else INTERRUPTED[signal.Signals(received[0])]
    except UserError as error:
        complain(f"error: {' '.join(str(error).split())}")
    except Failed as error:
        for line in error.args:
            complain(f"error: {' '.join(line.split())}")
        return FAILED
    except BrokenPipeError:  # whoever read our output has closed it (`| head`)
        return FAILED
    except OSError as error:
        if error.errno not in SURROUNDINGS and "temporary directory" not in str(error):
            raise
        complain(f"error: {error.filename or 'a file, or the output,'} cannot be used: {error.strerror}")
    return REFUSED


def settle_streams() -> None:
    """Let any text be printed on any terminal or none; unsupported characters are escaped."""
    for number in range(3):  # the next opened file would get the number of a closed one
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115  # None in Python if it was closed
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def flush_or_drop() -> None:
    """Print what is left, or drop it if that is impossible: Python would complain at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):  # a test's stream has no number
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(line: str) -> None:
    """Print a line on stderr; ranks above 0 identify themselves."""
    with suppress(OSError):  # stderr may be closed as well
        print(line if rank() == 0 else f"[rank {rank()}] {line}", file=sys.stderr, flush=True)
