"""Run a function on a module right after its first import: a package is adapted without importing all of it."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

Action = Callable[[ModuleType], None]


class AfterImport(MetaPathFinder):
    """A finder that delegates to the others, and calls `actions[module name]` on the module once it has run."""

    def __init__(self, actions: Mapping[str, Action]) -> None:
        self.actions = actions

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.actions:
            return None
        others = sys.meta_path[sys.meta_path.index(self) + 1 :]  # another AfterImport may have the same module
        spec = next((spec for finder in others if (spec := finder.find_spec(fullname, path, target))), None)
        if spec is not None and spec.loader is not None:
            execute, action = spec.loader.exec_module, self.actions[fullname]

            def exec_module(module: ModuleType) -> None:
                execute(module)
                action(module)

            spec.loader.exec_module = exec_module  # for this loader only: each module has its own
        return spec


def after_import(actions: Mapping[str, Action]) -> None:
    """Call each action on its module: at once if it has already been imported, otherwise when it is."""
    sys.meta_path.insert(0, AfterImport(actions))
    for name, action in actions.items():
        if name in sys.modules:
            action(sys.modules[name])
