"""torch.hub: torch.hub.load(REPOSITORY_OR_FOLDER, "starhubert", ckpt=...); the entries are in upstream/hubconf.py."""

from upstream.hubconf import *  # noqa: F403 - its __all__ are the entries, which torch.hub offers

dependencies = ["torch", "numpy", "yaml", "safetensors"]
