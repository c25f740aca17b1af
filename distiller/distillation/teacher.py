"""The teacher: any supported checkpoint, frozen."""

from pathlib import Path

from upstream.checkpoint import load
from upstream.encoder import SpeechEncoder

EMBEDDED_TEACHER = Path(__file__).parents[1] / "assets" / "teacher"


def load_teacher(name: str) -> SpeechEncoder:
    """The teacher that a recipe names: `embedded`, a folder, a file, or a hub name; in eval mode, without gradients.

    Raises:
        UserError: nothing that can be loaded stands there.
    """
    teacher = load(EMBEDDED_TEACHER if name == "embedded" else name)
    return teacher.eval().requires_grad_(False)
