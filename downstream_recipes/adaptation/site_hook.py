"""Two files in site-packages that adapt s3prl whenever this Python imports it."""

from pathlib import Path

NAME = "speech_distiller_s3prl"
HOOK = '''"""Written by {script}; `python {script} remove` removes it again."""

import sys


class _AtImportOfS3prl:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "s3prl":
            sys.meta_path.remove(_AtImportOfS3prl)
            try:
                sys.path.append({root!r})
                from downstream_recipes.adaptation import compat
            except ImportError as error:
                print("s3prl is not adapted: {script} cannot be used (%s)" % error, file=sys.stderr)
            else:
                compat.install()
        return None


sys.meta_path.insert(0, _AtImportOfS3prl)
'''


def install(site_packages: Path, script: Path) -> None:
    """Write the hook and the .pth file that imports it when Python starts.

    Args:
        script: the command that removes it again, in a folder below the repository's root.
    """
    (site_packages / f"{NAME}.py").write_text(HOOK.format(script=script, root=str(script.parents[1])))
    (site_packages / f"{NAME}.pth").write_text(f"import {NAME}\n")


def remove(site_packages: Path) -> None:
    """Undo `install`."""
    for suffix in (".pth", ".py"):
        (site_packages / f"{NAME}{suffix}").unlink(missing_ok=True)
