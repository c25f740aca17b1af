"""The house: which room may import which, no arrow upward, no circle, and nothing that grows too big."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMMON = {"upstream", "distiller.common"}  # every room may import them

# What else each room may import (docs/architecture.md). A room named as "room.module" allows that module only.
ROOMS: dict[str, set[str]] = {
    "upstream": set(),
    "distiller.common": {"upstream"},
    "distiller.audio": set(),
    "distiller.augmentation": {"distiller.audio"},
    "distiller.synthesis": set(),
    "distiller.voices": {"distiller.synthesis"},
    "distiller.objectives": {"distiller.codebooks.folder"},
    "distiller.students": set(),
    "distiller.graphs": {"distiller.finetuning.recognizer"},
    "distiller.exporters": {
        "distiller.audio", "distiller.corpora", "distiller.graphs", "distiller.finetuning.recognizer",
    },
    "distiller.corpora": {"distiller.audio", "distiller.augmentation.config", "distiller.synthesis"},
    "distiller.preparation": {"distiller.audio", "distiller.corpora"},
    "distiller.extraction": {"distiller.audio", "distiller.corpora"},
    "distiller.codebooks": {
        "distiller.audio", "distiller.corpora", "distiller.extraction", "distiller.synthesis",
    },
    "distiller.probes": {"distiller.audio", "distiller.augmentation", "distiller.synthesis", "distiller.corpora"},
    "distiller.training": {"distiller.audio", "distiller.objectives.base"},
    "distiller.clustering": {"distiller.audio", "distiller.corpora", "distiller.objectives"},
    "distiller.recipes": {
        "distiller.augmentation.config", "distiller.corpora.config", "distiller.training.config",
        "distiller.objectives.config", "distiller.objectives.registry", "distiller.students.config",
        "distiller.teachers.config",
    },
    "distiller.teachers": {"distiller.objectives", "distiller.recipes"},
    "distiller.reports": {
        "distiller.audio", "distiller.probes", "distiller.objectives", "distiller.teachers", "distiller.clustering",
        "distiller.recipes",
    },
    "distiller.distillation": {
        "distiller.audio", "distiller.augmentation", "distiller.synthesis", "distiller.corpora",
        "distiller.objectives", "distiller.teachers", "distiller.students", "distiller.training",
        "distiller.clustering", "distiller.codebooks", "distiller.probes", "distiller.recipes", "distiller.reports",
    },
    "distiller.finetuning": {
        "distiller.audio", "distiller.augmentation", "distiller.corpora", "distiller.objectives", "distiller.training",
        "distiller.teachers", "distiller.recipes", "distiller.reports", "distiller.distillation",
    },
    "distiller.benchmarks": {
        "distiller.audio", "distiller.synthesis", "distiller.corpora", "distiller.preparation", "distiller.students",
        "distiller.teachers", "distiller.recipes", "distiller.reports", "distiller.distillation", "distiller.graphs",
        "distiller.exporters",
    },
    "distiller.steps": {
        "distiller.audio", "distiller.corpora", "distiller.objectives", "distiller.students", "distiller.training",
        "distiller.teachers", "distiller.recipes", "distiller.distillation", "distiller.benchmarks",
    },
    "downstream_recipes.adaptation": set(),
    "downstream_recipes.tasks": {"downstream_recipes.adaptation"},
    "downstream_recipes.scores": {"downstream_recipes.adaptation", "downstream_recipes.tasks"},
    "downstream_recipes.suite": {
        "downstream_recipes.adaptation", "downstream_recipes.tasks", "downstream_recipes.scores",
    },
    "downstream_recipes.miniature": {"downstream_recipes.tasks", "distiller.synthesis"},
}  # fmt: skip
PACKAGES = ("upstream", "distiller", "downstream_recipes")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
SHIPPED = "distiller.exporters.modeling_speech_encoder"  # lies beside copies of upstream's files in an export


def room_of(module: str) -> str | None:
    """The room of a module; None for a command, and for a package's own docstring."""
    if module.startswith("upstream"):
        return "upstream"
    parts = module.split(".")
    return ".".join(parts[:2]) if MODULES[module].parent != ROOT / parts[0] else None


def imports_of(module: str) -> Iterator[str]:
    """Every module of ours that a file imports, also inside functions, under TYPE_CHECKING and under `__main__`."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            names = [name if (name := f"{base}.{alias.name}") in MODULES else base for alias in node.names]
        else:
            continue
        yield from (name for name in names if name in MODULES and name != module)


IMPORTS = {module: sorted(set(imports_of(module))) for module in MODULES if module != SHIPPED}


def test_every_folder_is_a_room_of_the_table() -> None:
    assert {room for module in MODULES if (room := room_of(module))} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    allowed = {room} | ROOMS[room] | (COMMON if room != "upstream" else set())
    forbidden = [
        f"{module} imports {imported}"
        for module in IMPORTS
        if room_of(module) == room
        for imported in IMPORTS[module]
        if not any(imported == name or imported.startswith(f"{name}.") for name in allowed)
    ]
    assert forbidden == []


def test_the_table_has_no_circle() -> None:
    """Rooms in an order in which each imports earlier ones only: arrows go downward."""
    placed: set[str] = set()
    waiting = {room: {".".join(name.split(".")[:2]) for name in names} for room, names in ROOMS.items()}
    configs = {"distiller.recipes"}  # imports config.py of rooms, which import nothing but common
    while waiting:
        free = [room for room, needs in waiting.items() if needs <= placed or room in configs]
        assert free, f"a circle among {sorted(waiting)}"
        placed.update(free)
        waiting = {room: needs for room, needs in waiting.items() if room not in free}


def test_no_module_imports_itself_by_a_detour() -> None:
    seen: dict[str, bool] = {}  # False while a module's imports are followed, True afterwards

    def follow(module: str, path: tuple[str, ...]) -> None:
        assert seen.get(module, True), " -> ".join((*path[path.index(module) :], module))
        if module not in seen:
            seen[module] = False
            for imported in IMPORTS.get(module, []):
                follow(imported, (*path, module))
            seen[module] = True

    for module in IMPORTS:
        follow(module, ())


def test_nobody_imports_a_command() -> None:
    """Commands hold a parser and one call; what others need is in a room."""
    commands = {module for module in MODULES if room_of(module) is None and "." in module}
    assert [f"{module} imports {name}" for module, names in IMPORTS.items() for name in names if name in commands] == []


def test_upstream_can_be_copied_into_s3prl() -> None:
    """It imports itself relatively, and nothing else of ours."""
    for module, path in MODULES.items():
        if module.startswith("upstream"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
                assert not [name for name in names if name.split(".")[0] in PACKAGES], path


def test_common_and_configurations_are_imported_without_torch() -> None:
    for module, path in MODULES.items():
        if module.startswith(("distiller.common", "distiller.recipes")) or module.endswith(".config"):
            for node in ast.parse(path.read_text()).body:  # at import, not inside functions
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert not {name.split(".")[0] for name in names} & {"torch", "lightning", "lhotse", "scipy"}, path


def test_nothing_grows_too_big() -> None:
    """Files of 300 lines, functions of 60, rooms of 1,200 lines and nine files, at most 28 rooms."""
    lines = {module: len(path.read_text().splitlines()) for module, path in MODULES.items()}
    assert {module: count for module, count in lines.items() if count > 300} == {}
    rooms: dict[str, list[str]] = defaultdict(list)
    for module, path in MODULES.items():
        if (room := room_of(module)) and room != "upstream" and path.name != "__init__.py":
            rooms[room].append(module)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{module}.{node.name}"
    assert {room: len(files) for room, files in rooms.items() if len(files) > 9} == {}
    assert {room: total for room, files in rooms.items() if (total := sum(lines[f] for f in files)) > 1200} == {}
    assert len(rooms) <= 28
