"""The tasks by their SUPERB codes, and what s3prl calls them."""

from dataclasses import dataclass
from pathlib import Path

from upstream.errors import UserError

FOLDER = Path(__file__).parents[1]
SEPARATION = ("asteroid", "pesq", "pystoi")


@dataclass(frozen=True)
class Task:
    """A task of SUPERB."""

    code: str  # SUPERB's
    downstream: str  # s3prl's -d
    trained: bool = True
    extra: bool = False  # not one of the ten of the SUPERB table
    packages: tuple[str, ...] = ()  # beyond the dependency group superb

    @property
    def recipe(self) -> Path:
        return FOLDER / f"{self.code}.yaml"


TASKS = {
    task.code: task
    for task in (
        Task("pr", "ctc"),
        Task("asr", "asr"),
        Task("ks", "speech_commands"),
        Task("qbe", "quesst14_dtw", trained=False),
        Task("sid", "voxceleb1"),
        Task("asv", "sv_voxceleb1"),
        Task("sd", "diarization"),
        Task("ic", "fluent_commands"),
        Task("sf", "ctc"),
        Task("er", "emotion"),
        Task("se", "enhancement_stft", extra=True, packages=SEPARATION),
        Task("ss", "separation_stft", extra=True, packages=SEPARATION),
    )
}


def find_task(name: str) -> Task | None:
    """The task of a SUPERB code or of s3prl's own name; None when s3prl may know a task that we have no recipe for.

    Raises:
        UserError: s3prl's name stands for several of them.
    """
    if name in TASKS:
        return TASKS[name]
    found = [task for task in TASKS.values() if task.downstream == name]
    if len(found) > 1:
        codes = " or ".join(task.code for task in found)
        raise UserError(f"-d {name} stands for more than one task: give -d {codes}, or a recipe with -c")
    return found[0] if found else None
