"""The leaderboard's prediction layout: predict/<task>_public/ and predict.zip, as s3prl's submit.py arranges them."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from distiller.common.files import disk_errors, remove
from downstream_recipes.tasks.tasks import Task
from upstream.errors import UserError
from upstream.files import PART


def write_submission(predictions: Mapping[Task, Path], directory: Path) -> Path:
    """Collect the predictions of finished tasks; returns the zip file.

    Args:
        predictions: task -> the folder that its evaluation wrote to (ER: the parent of the folds' folders).
        directory: replaced by the new submission once that is complete.

    Raises:
        UserError: a prediction is missing, or the directory cannot be written.
    """
    with disk_errors(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=PART) as temporary:
            unfinished = Path(temporary) / directory.name
            for task, folder in predictions.items():
                for fold in task.folds or ("",):
                    source, name = (part.format(fold=fold) for part in task.submission)
                    target = "_".join(filter(None, [task.leaderboard or task.code, fold, "public"]))
                    _copy(folder / fold / source, unfinished / "predict" / target / name, task)
            shutil.make_archive(str(unfinished / "predict"), "zip", unfinished, "predict")
            remove(directory)
            unfinished.rename(directory)
    return directory / "predict.zip"


def _copy(source: Path, target: Path, task: Task) -> None:
    if not source.exists():
        raise UserError(f"{source} is missing: there is no prediction of {task.code} to submit")
    target.parent.mkdir(parents=True, exist_ok=True)
    (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
