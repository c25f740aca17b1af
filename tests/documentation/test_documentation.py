"""What the documentation says of the repository's files."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("package", ["upstream", "distiller", "downstream_recipes"])
def test_the_architecture_names_every_file(package: str) -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    part = text[text.index(f"| {package}/ |") :].partition("\n\n")[0]
    files = {path.name for path in (ROOT / package).rglob("*.py")} - {"__init__.py"}
    assert files == set(re.findall(r"`(\w+\.py)`", part))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    links = [page.parent / link for link in re.findall(r"\]\((?!https?://)([^)#]+)", text)]
    paths = [
        ROOT / path
        for path in re.findall(r"(?<![\w/])((?:docs|upstream|distiller|downstream_recipes|tests)/[\w/.-]*\w)", text)
    ]
    assert [str(path) for path in [*links, *paths] if not path.exists()] == []
