"""The leaderboard's prediction layout: predict/<task>_public/ and predict.zip, as s3prl's submit.py arranges them."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from upstream.errors import UserError

# task -> (folder of the submission, file of the experiment, its name in the submission)
FILES: Mapping[str, tuple[str, str, str]] = {
    "pr": ("pr_public", "test-hyp.ark", "predict.ark"),
    "asr": ("asr_public", "test-clean-noLM-hyp.ark", "predict.ark"),
    "ks": ("ks_public", "test_predict.txt", "predict.txt"),
    "qbe": ("qbe_public", "benchmark.stdlist.xml", "benchmark.stdlist.xml"),
    "sid": ("sid_public", "test_predict.txt", "predict.txt"),
    "asv": ("sv_public", "test_predict.txt", "predict.txt"),
    "ic": ("ic_public", "test_predict.csv", "predict.csv"),
    "sf": ("sf_public", "test-hyp.ark", "predict.ark"),
    "se": ("se_public", "test_metrics.txt", "metrics.txt"),
    "ss": ("ss_public", "test_metrics.txt", "metrics.txt"),
    **{
        f"er-fold{fold}": (f"er_fold{fold}_public", f"test_fold{fold}_predict.txt", "predict.txt")
        for fold in range(1, 6)
    },
}


def write_submission(experiments: Mapping[str, Path], directory: Path) -> Path:
    """Collect the predictions of finished experiments; the zip file.

    Args:
        experiments: task (ER as er-fold1 .. er-fold5) -> the folder that its evaluation wrote to.
        directory: replaced as a whole.

    Raises:
        UserError: a prediction file is missing.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".submission-") as temporary:
        unfinished = Path(temporary) / "submission"
        for task, experiment in experiments.items():
            if task == "sd":
                source, target = experiment / "scoring" / "predictions", unfinished / "predict" / "sd_public"
            else:
                folder, file, name = FILES[task]
                source, target = experiment / file, unfinished / "predict" / folder / name
            if not source.exists():
                raise UserError(f"{source}: no prediction of {task} to submit")
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
        shutil.make_archive(str(unfinished / "predict"), "zip", unfinished, "predict")
        shutil.rmtree(directory, ignore_errors=True)
        os.replace(unfinished, directory)
    return directory / "predict.zip"
