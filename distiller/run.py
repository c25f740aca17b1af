#!/usr/bin/env python
"""Distil a speech encoder: a recipe, what the command line changes in it, and the run."""

import sys
from pathlib import Path

if __name__ == "__main__":  # runs uninstalled and from any directory; distiller/ itself is no place to import from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import errno
import gc
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import NoReturn

from distiller.devices import place, rank
from distiller.files import expanded
from distiller.output import check_same_recipe, claimed, is_finished, prepare
from distiller.recipe import Recipe, resolve
from distiller.recipe_values import methods, shipped
from distiller.strict import nearest
from upstream.errors import UserError

DESCRIPTION = """\
Distil a HuBERT, WavLM or wav2vec 2.0 teacher into a small student.

A recipe says everything about a run; --method NAME takes the recipe of that name. The same command again continues an
interrupted run, and shows the table of a finished one.
"""

EPILOG = """\
examples:
  python distiller/run.py --method star
        the whole job on synthetic speech with the embedded teacher, in minutes on a CPU
  python distiller/run.py --recipe star-hubert-960h --corpus /data/LibriSpeech trainer.devices=4 trainer.accumulate=4
        the paper's setting on four GPUs
  python distiller/run.py --recipe star-wavlm-100h --corpus /data/LibriSpeech --dry-run student.size=S
        what a small WavLM student would cost
  torchrun --nproc-per-node 4 distiller/run.py --recipe star-hubert-100h --corpus /data/LibriSpeech trainer.devices=4

key=value changes any key that --dry-run prints, such as optimizer.lr=5e-3 or objective.scaling=centred. objective=NAME
and student=NAME take another objective or student with its own defaults.

recipes: {recipes}
"""

INTERRUPTED = {signal.SIGINT: 130, signal.SIGTERM: 143}  # exit codes
REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}  # what a disk says


class Parser(argparse.ArgumentParser):
    """Raises its complaints instead of printing them with the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def parser() -> Parser:
    built = Parser(
        prog="distiller/run.py",
        description=DESCRIPTION,
        epilog=EPILOG.format(recipes=" ".join(shipped())),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    built.add_argument("--method", metavar="NAME", help=f"{', '.join(methods())}: take the recipe of that name")
    built.add_argument("--recipe", metavar="NAME|FILE", help="a recipe by its name below, or a YAML file of your own")
    built.add_argument(
        "--teacher", metavar="embedded|ID|DIR", help="the teacher: embedded, a hub name, a folder or file"
    )
    built.add_argument(
        "--corpus", metavar="embedded|DIR|MANIFEST", help="the audio: embedded, a folder, Lhotse manifests"
    )
    built.add_argument("--output", metavar="DIR", type=Path, help="where everything goes (default: exp/<recipe>)")
    built.add_argument(
        "--overwrite", action="store_true", help="remove the run that the output holds, and start afresh"
    )
    built.add_argument("--dry-run", action="store_true", help="print the recipe and what it costs, and touch nothing")
    built.add_argument("overrides", metavar="key=value", nargs="*", help="changes in the recipe")
    return built


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's options; `overrides` may stand anywhere among them.

    Raises:
        UserError: an option that does not exist or lacks its value.
    """
    built = parser()
    arguments, unknown = built.parse_known_intermixed_args(argv)
    if unknown:
        options = [option[2:] for action in built._actions for option in action.option_strings if option[:2] == "--"]
        meant = nearest(unknown[0].partition("=")[0].lstrip("-"), options)
        hint = f"did you mean --{meant}?" if meant else "see --help; a recipe key is given as key=value, without dashes"
        raise UserError(f"option {unknown[0]} does not exist; {hint}")
    return arguments


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """The recipe that the options ask for.

    Raises:
        UserError: a wrong method, recipe, key or value.
    """
    return resolve(arguments.method, arguments.recipe, arguments.teacher, arguments.corpus, arguments.overrides)


def output_of(arguments: argparse.Namespace) -> Path:
    return arguments.output or Path("exp") / Path(arguments.recipe or arguments.method).stem


def located(recipe: Recipe, dry: bool = False) -> Recipe:
    """The same with paths that hold in any directory.

    Raises:
        UserError: a teacher or corpus that is not there; a hub name is believed, and for a `dry` run any corpus.
    """
    teacher, corpus = (_absolute(name) for name in (recipe.teacher, recipe.corpus.path))
    corpus = corpus or (recipe.corpus.path if dry else None)
    if not (teacher or re.fullmatch(r"[\w.-]+/[\w.-]+", recipe.teacher)):
        raise UserError(f"teacher {recipe.teacher} does not exist; {_expected(recipe.teacher, 'a hub name ORG/NAME')}")
    if not corpus:
        raise UserError(f"corpus {recipe.corpus.path} does not exist; {_expected(recipe.corpus.path, 'a manifest')}")
    return replace(recipe, teacher=teacher or recipe.teacher, corpus=replace(recipe.corpus, path=corpus))


def _absolute(name: str) -> str | None:
    """`embedded` itself, the absolute path of something that exists, or None."""
    path = expanded(name)
    return name if name == "embedded" else str(path.resolve()) if os.path.exists(path) else None


def _expected(name: str, third: str) -> str:
    """What could stand for a path that is not there: its nearest neighbour in the folder, if any."""
    path = expanded(name)
    siblings = os.listdir(path.parent) if os.path.isdir(path.parent) and os.access(path.parent, os.R_OK) else []
    meant = nearest(path.name, ["embedded", *siblings])
    suggestion = f"; did you mean {meant if meant == 'embedded' else path.with_name(meant)}?" if meant else ""
    return f"it could be embedded, a folder or {third}{suggestion}"


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


def run(recipe: Recipe, output: Path, overwrite: bool) -> None:
    """Begin, continue, or show what is finished.

    Raises:
        UserError: whatever the user can mend.
    """
    if is_finished(output) and not overwrite:
        check_same_recipe(output, recipe)
        if rank() == 0:
            from distiller.report import print_report

            print_report(output)
        return
    recipe = replace(recipe, trainer=place(recipe.trainer))
    with refusals(output):
        if rank() > 0:
            distil(recipe, output)
            return
        with claimed(output):
            prepare(output, recipe, overwrite)
            distil(recipe, output)


def distil(recipe: Recipe, output: Path) -> None:
    """`distiller.distillation.distil`, whose imports take seconds: after everything that may be wrong before it."""
    from distiller.distillation import distil

    distil(recipe, output)


@contextmanager
def refusals(output: Path) -> Iterator[None]:
    """A full or forbidden disk is the user's to mend."""
    try:
        yield
    except OSError as error:
        if error.errno in REFUSED:
            raise UserError(f"{error.filename or output} cannot be written: {error.strerror}") from error
        raise


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(lambda: _carry_out(parse(argv)))


def exit_code(command: Callable[[], int | None], continuing: str = "run the same command to continue") -> int:
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
            return INTERRUPTED[signal.Signals(received[0])]
    except UserError as error:
        complain(f"error: {' '.join(str(error).split())}")
        return 2


def complain(line: str) -> None:
    print(line if rank() == 0 else f"[rank {rank()}] {line}", file=sys.stderr)


def _carry_out(arguments: argparse.Namespace) -> None:
    recipe = located(recipe_of(arguments), arguments.dry_run)
    if arguments.dry_run:
        from distiller.plan import print_plan

        print_plan(recipe)
        return
    run(recipe, output_of(arguments), arguments.overwrite)


if __name__ == "__main__":
    sys.exit(main())
