"""Files, functions and names that the documentation mentions exist."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documentation.pages import NAMES, PAGES, ROOT, code_spans
from tests.test_rooms import COMMON, MODULES, ROOMS

OF_OTHERS = {"hub.py"}  # s3prl's
CODE = [*MODULES.values(), ROOT / "hubconf.py", *(ROOT / "tests").rglob("*.py")]
SETTINGS = [path for folder in ("distiller", "downstream_recipes") for path in (ROOT / folder).rglob("*.yaml")]


def definitions(path: Path) -> Iterator[str]:
    """Functions, classes and constants of a file, and Class.member."""
    for node in ast.parse(path.read_text()).body:
        yield from names(node)
        if isinstance(node, ast.ClassDef):
            yield from (f"{node.name}.{name}" for member in node.body for name in names(member))


def names(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


@pytest.fixture(scope="module")
def words() -> set[str]:
    """Every word of the code and of its settings."""
    text = "\n".join(path.read_text() for path in [*CODE, *SETTINGS, ROOT / "pyproject.toml"])
    return set(re.findall(r"\w+", text))


@pytest.mark.parametrize("page", PAGES, ids=NAMES.get)
def test_paths(page: Path) -> None:
    """Links, paths that begin with a folder of ours, and files in backticks, which may leave out their folder."""
    text = page.read_text()
    links = [page.parent / link for link in re.findall(r"\]\((?!https?://)([^)#]+)", text)]
    folders = "docs|upstream|distiller|downstream_recipes|tests"
    paths = [ROOT / path for path in re.findall(rf"(?<![\w/])((?:{folders})/[\w/.-]*\w)", text)]
    paths = [path for path in paths if path.stem not in ("NAME", "CODE")]  # of a file to add
    assert [str(path) for path in [*links, *paths] if not path.exists()] == []
    files = {name for name in code_spans(page) if re.fullmatch(r"[\w/]+\.py", name)} - OF_OTHERS
    known = [f"/{path.relative_to(ROOT)}" for path in CODE]
    assert [name for name in files if not any(path.endswith(f"/{name}") for path in known)] == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES.get)
def test_functions(page: Path) -> None:
    """What follows `path/file.py`: is defined in that file."""
    missing = [
        f"{path}: {name}"
        for path, listed in re.findall(r"`([\w/]+/\w+\.py)`: ((?:`[\w.]+`(?:, | and )?)+)", page.read_text())
        for name in re.findall(r"`([\w.]+)`", listed)
        if name not in definitions(ROOT / path)
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES.get)
def test_identifiers(page: Path, words: set[str]) -> None:
    """Every other identifier in backticks, dotted or not, consists of words that the code has."""
    spans = [span for span in code_spans(page) if re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", span)]
    files = (".csv", ".png", ".md", ".py")
    spans = [span for span in spans if re.search(r"_|\w[A-Z]|\.", span) and not span.endswith(files)]
    assert [span for span in spans if not set(span.split(".")) <= words] == []


def test_architecture_has_the_table_of_rooms() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    table: dict[str, set[str]] = {}
    for path, cell in re.findall(r"^\| `([\w/]+)/` \| .* \| (.*) \|$", text, re.MULTILINE):
        package, *_ = path.split("/")
        names = re.findall(r"[\w.]+", cell)
        table[path.replace("/", ".")] = {n if n.startswith("distiller.") else f"{package}.{n}" for n in names}
    assert table == {room: names - COMMON for room, names in ROOMS.items()}
