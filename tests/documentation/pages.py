"""The pages of the documentation, and the command lines in them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = {page: str(page.relative_to(ROOT)) for page in PAGES}
LAUNCHERS = ("python", "torchrun", "srun", "uv")
SCRIPT = re.compile(r"(?:distiller|downstream_recipes)/\w+\.py")


def code_spans(page: Path) -> list[str]:
    """What is between backticks outside of code blocks."""
    return re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """(script, its arguments) of every command line that runs a script of ours, in code blocks and in sentences."""
    text = page.read_text()
    blocks = re.findall(r"```(?:bash|console)\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += [span for span in code_spans(page) if not span.endswith(".py")]  # a script's name alone is not a command
    for name, value in re.findall(r'(\w+)="(python [^"]+)"', text):  # R="python distiller/run.py ..."
        lines = [line.replace(f"${name} ", f"{value} ") for line in lines]
    for line in lines:
        if SCRIPT.search(line) and line.split()[0] in LAUNCHERS:
            words = shlex.split(line, comments=True)
            place = next(place for place, word in enumerate(words) if SCRIPT.fullmatch(word))
            yield words[place], words[place + 1 :]
