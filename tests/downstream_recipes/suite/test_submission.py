import zipfile
from pathlib import Path

import pytest

from downstream_recipes.suite.submission import write_submission
from downstream_recipes.tasks.tasks import TASKS
from upstream.errors import UserError


def test_predictions_are_where_the_leaderboard_expects_them(tmp_path: Path):
    files = {code: f"{code}/test_predict.txt" for code in ("ks", "sid", "asv")}
    files |= {code: f"{code}/test-hyp.ark" for code in ("pr", "sf")}
    files |= {code: f"{code}/test_metrics.txt" for code in ("se", "ss")}
    files |= {f"er{number}": f"er/fold{number}/test_fold{number}_predict.txt" for number in range(1, 6)}
    files |= {"asr": "asr/test-clean-noLM-hyp.ark", "ic": "ic/test_predict.csv"}
    files |= {"qbe": "qbe/benchmark.stdlist.xml", "sd": "sd/scoring/predictions/mix_1.h5"}
    for name, file in files.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(name)
    archive = write_submission({task: tmp_path / task.code for task in TASKS.values()}, tmp_path / "out")
    names = {name for name in zipfile.ZipFile(archive).namelist() if not name.endswith("/")}
    assert names == {
        *(f"predict/{code}_public/predict.ark" for code in ("pr", "asr", "sf")),
        *(f"predict/{code}_public/predict.txt" for code in ("ks", "sid", "sv")),
        *(f"predict/er_fold{number}_public/predict.txt" for number in range(1, 6)),
        *(f"predict/{code}_public/metrics.txt" for code in ("se", "ss")),
        "predict/ic_public/predict.csv",
        "predict/sd_public/mix_1.h5",
        "predict/qbe_public/benchmark.stdlist.xml",
    }
    assert zipfile.ZipFile(archive).read("predict/er_fold3_public/predict.txt") == b"er3"


def test_a_missing_prediction_leaves_the_old_submission(tmp_path):
    (tmp_path / "pr").mkdir()
    (tmp_path / "pr" / "test-hyp.ark").write_text("words")
    predictions = {TASKS["pr"]: tmp_path / "pr"}
    archive = write_submission(predictions, tmp_path / "out")
    with pytest.raises(UserError, match=r"test_predict\.txt is missing: there is no prediction of sid"):
        write_submission({**predictions, TASKS["sid"]: tmp_path / "sid"}, tmp_path / "out")
    assert archive.exists()
