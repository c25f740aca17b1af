"""Make our upstreams, and s3prl itself on today's torch, available to an unmodified `python -m s3prl.run_downstream`.

python downstream_recipes/s3prl_hook.py install    # then: python -m s3prl.run_downstream -m train -u starhubert ...
python downstream_recipes/s3prl_hook.py remove     # as if it had never been

Two small files go into this Python's site-packages: a .pth that imports the other at every start, which waits, at no
cost, until something imports s3prl, and then lets downstream_recipes/adaptation/compat.py adapt it. The files of s3prl
itself stay as they are.
"""

import argparse
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

NAME = "speech_distiller_s3prl"
HOOK = '''"""Written by {script}; `python {script} remove` takes it away again."""

import sys


class _AtImportOfS3prl:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "s3prl":
            sys.meta_path.remove(_AtImportOfS3prl)
            try:
                sys.path.append({root!r})
                from downstream_recipes import compat
            except ImportError as error:
                print("s3prl is not adapted: {script} cannot be used (%s)" % error, file=sys.stderr)
            else:
                compat.install()
        return None


sys.meta_path.insert(0, _AtImportOfS3prl)
'''


def install(site_packages: Path) -> None:
    script = Path(__file__).resolve()
    (site_packages / f"{NAME}.py").write_text(HOOK.format(script=script, root=str(script.parents[1])))
    (site_packages / f"{NAME}.pth").write_text(f"import {NAME}\n")


def remove(site_packages: Path) -> None:
    for suffix in (".pth", ".py"):
        (site_packages / f"{NAME}{suffix}").unlink(missing_ok=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("install", "remove"))
    parser.add_argument(
        "--site-packages", type=Path, default=sysconfig.get_paths()["purelib"], help="default: this Python's own"
    )
    arguments = parser.parse_args(argv)
    try:
        {"install": install, "remove": remove}[arguments.action](Path(arguments.site_packages))
    except OSError as error:
        print(f"s3prl_hook.py: {error.filename}: cannot be changed ({error.strerror})", file=sys.stderr)
        return 2
    print(f"{arguments.action}: {arguments.site_packages}/{NAME}.pth")
    return 0


if __name__ == "__main__":
    sys.exit(main())
