"""The command lines of the documentation are accepted by the scripts that they name. Nothing is run."""

import importlib
import re

import pytest

from tests.documentation.pages import PAGES, ROOT, commands

README = (ROOT / "README.md").read_text()
REFUSED = re.findall(r"```console\n\$ (.*)\n(.*)\n```", README)  # examples of errors, with what they print
CASES = {" ".join([script, *argv]): (script, argv) for page in PAGES for script, argv in commands(page)}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_command(case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Its options exist; a recipe that it names does, with all of its keys and values."""
    script, argv = CASES[case]
    command = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    if script == "distiller/run.py":  # without --dry-run the corpus must exist
        monkeypatch.setattr(command, "start", lambda *arguments: None)
        argv = [*argv, "--dry-run"]
    else:
        monkeypatch.setattr(command, "_main", lambda arguments: None)
    refused = any(line.endswith(case) for line, _ in REFUSED)
    assert (command.main(argv), capsys.readouterr().err == "") == ((2, False) if refused else (0, True))


def test_every_script_is_shown() -> None:
    """A command without an example is hard to find; results is for maintainers."""
    files = [path for folder in ("distiller", "downstream_recipes") for path in (ROOT / folder).glob("*.py")]
    scripts = {str(path.relative_to(ROOT)) for path in files}
    scripts = {script for script in scripts if not script.endswith(("__init__.py", "results.py"))}
    assert scripts - {script for script, _ in CASES.values()} == set()


@pytest.mark.parametrize(("line", "printed"), REFUSED)
def test_error_examples(line: str, printed: str, capsys: pytest.CaptureFixture) -> None:
    """The error that README shows is what the program prints."""
    script, *argv = line.removeprefix("python ").split()
    command = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    assert (command.main(argv), capsys.readouterr().err) == (2, f"{printed}\n")
