"""The corpora of SUPERB: check those you have, or make miniature ones.

python downstream_recipes/corpora.py check corpora.yaml      # per task: what is missing, where to get it, hours found
python downstream_recipes/corpora.py make-mini DIR           # synthetic, in the layout of every task; DIR/corpora.yaml
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from distiller.common.command import run_command
from downstream_recipes.miniature.make import make_miniature
from downstream_recipes.tasks.corpora_check import corpora_of, hours, missing, missing_words
from downstream_recipes.tasks.corpus_layouts import CORPORA
from downstream_recipes.tasks.recipes import read_corpora
from downstream_recipes.tasks.tasks import TASKS
from upstream.errors import UserError


def check(corpora: Mapping[str, Any]) -> tuple[str, bool]:
    """A report of every task, and whether the ten of the table can all be run."""
    names = list(dict.fromkeys(name for task in TASKS.values() for name in corpora_of(task)))
    faults = {name: missing(name, corpora) for name in names}
    if not faults["librispeech"] and not faults["lexicon"]:
        faults["lexicon"] = missing_words(corpora)
    found = {name: hours(name, corpora) for name in names if not faults[name] and Path(str(corpora[name])).is_dir()}
    lines, complete = [], True
    for task in TASKS.values():
        needed = corpora_of(task)
        wrong = [name for name in needed if faults[name]]
        complete = complete and (task.extra or not wrong)
        amount = ", ".join(f"{name} {found[name]:.2f} h" for name in needed if name in found)
        lines.append(f"{task.code:4} {'missing' if wrong else 'complete':9}{amount}".rstrip())
        for name in wrong:
            lines += [f"       {fault}" for fault in faults[name]]
            lines.append(f"       get it: {CORPORA[name].source}")
    return "\n".join(lines), complete


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="corpora.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="what is missing").add_argument("file", help="as downstream_recipes/corpora.yaml")
    commands.add_parser("make-mini", help="synthesise miniature corpora").add_argument("directory", type=Path)
    arguments = parser.parse_args(argv)
    return run_command(lambda: _carry_out(arguments))


def _carry_out(arguments: argparse.Namespace) -> int:
    try:
        if arguments.command == "make-mini":
            print(f"give --corpora {make_miniature(arguments.directory)}")
            return 0
        report, complete = check(read_corpora(arguments.file))
    except UserError as error:
        print(f"corpora.py: {error}", file=sys.stderr)
        return 2
    print(report)
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
