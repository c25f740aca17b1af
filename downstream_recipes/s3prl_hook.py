"""Make our upstreams, and s3prl itself on a current torch, available to an unmodified `python -m s3prl.run_downstream`.

python downstream_recipes/s3prl_hook.py install    # then: python -m s3prl.run_downstream -m train -u starhubert ...
python downstream_recipes/s3prl_hook.py remove

Two small files go into this Python's site-packages: a .pth file imports the other one when Python starts. That one
waits, at no cost, until something imports s3prl, and then lets downstream_recipes/adaptation/compat.py adapt it. The
files of s3prl stay as they are.
"""

import argparse
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from distiller.common.command import Parser, run_command
from distiller.common.files import disk_errors
from downstream_recipes.adaptation.site_hook import NAME, install, remove


def parser() -> Parser:
    parser = Parser(any_path=True, prog="s3prl_hook.py", description=__doc__)
    parser.add_argument("action", choices=("install", "remove"))
    default = Path(sysconfig.get_paths()["purelib"])
    parser.add_argument("--site-packages", type=Path, default=default, help="default: this Python's")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(lambda: _main(parser().parse_args(argv)), "run the same command again")


def _main(arguments: argparse.Namespace) -> None:
    with disk_errors(arguments.site_packages):
        if arguments.action == "install":
            install(arguments.site_packages, Path(__file__).resolve())
        else:
            remove(arguments.site_packages)
    print(f"{arguments.action}: {arguments.site_packages}/{NAME}.pth")


if __name__ == "__main__":
    sys.exit(main())
