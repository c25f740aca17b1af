"""The teacher: any supported checkpoint, frozen."""

from pathlib import Path

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
