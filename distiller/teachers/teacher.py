"""Teachers: any supported checkpoints, frozen."""

import hashlib
import json
from pathlib import Path
from typing import Any

from distiller.common.provenance import parameter_count
from distiller.recipes.recipe import BUNDLED
from upstream.checkpoint import load
from upstream.encoder import SpeechEncoder

BUNDLED_TEACHER = Path(__file__).parents[1] / "assets" / "teacher"


def load_teacher(name: str) -> SpeechEncoder:
    """The teacher that a recipe names: `bundled`, a folder, a file, or a hub name; in eval mode, without gradients.

    Raises:
        UserError: the checkpoint does not exist or cannot be loaded.
    """
    teacher = load(BUNDLED_TEACHER if name in (BUNDLED, "embedded") else name)  # embedded: its name in older versions
    return teacher.eval().requires_grad_(False)


def identity(encoder: SpeechEncoder) -> dict[str, Any]:
    """What identifies an encoder, wherever its files are: its size, and a digest of its shape and weights."""
    content = hashlib.sha256(json.dumps(encoder.config.to_dict(), sort_keys=True).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        content.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return {"parameters": parameter_count(encoder), "sha256": content.hexdigest()[:16]}
