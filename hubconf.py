"""torch.hub: torch.hub.load(REPO_OR_DIR, "starhubert", ckpt=...); the entries are those of upstream/hubconf.py."""

from upstream.hubconf import *  # noqa: F403 - torch.hub offers every public callable, and upstream.hubconf has no others

dependencies = ["torch", "numpy", "yaml", "safetensors"]
