"""torch.hub: torch.hub.load(REPOSITORY_OR_FOLDER, "starhubert", ckpt=...); the entries are in upstream/hubconf.py.

The user may have an `upstream` of their own, so ours is imported under a name that nobody else has. The name contains a
digest of the code: after force_reload, changed code is new code, and unchanged code is the same classes.
"""

import hashlib as _hashlib
import importlib as _importlib
import importlib.util as _importlib_util
import sys as _sys
from pathlib import Path as _Path
from types import ModuleType as _ModuleType

dependencies = ["torch", "numpy", "yaml", "safetensors"]


def _entries() -> _ModuleType:
    """upstream/hubconf.py beside this file, in a package of its own."""
    folder = _Path(__file__).resolve().parent / "upstream"
    code = b"\0".join(path.read_bytes() for path in sorted(folder.rglob("*.py")))
    name = f"_speech_distiller_{_hashlib.sha256(code).hexdigest()[:12]}"
    if name not in _sys.modules:
        _importlib.invalidate_caches()
        spec = _importlib_util.spec_from_file_location(name, folder / "__init__.py")  # a package, by its __init__.py
        assert spec is not None
        assert spec.loader is not None
        _sys.modules[name] = package = _importlib_util.module_from_spec(spec)
        spec.loader.exec_module(package)
    return _importlib.import_module(f"{name}.hubconf")


_hubconf = _entries()
globals().update({name: getattr(_hubconf, name) for name in _hubconf.__all__})
