import zipfile
from pathlib import Path

import pytest

from downstream_recipes.suite.submission import FILES, write_submission
from upstream.errors import UserError


def test_predictions_lie_where_the_leaderboard_expects_them(tmp_path: Path):
    experiments = {}
    for task, (_, file, _) in FILES.items():
        experiments[task] = tmp_path / task
        experiments[task].mkdir()
        (experiments[task] / file).write_text(task)
    predictions = tmp_path / "sd" / "scoring" / "predictions"
    predictions.mkdir(parents=True)
    (predictions / "mix_1.h5").write_text("sd")
    archive = write_submission({**experiments, "sd": tmp_path / "sd"}, tmp_path / "out")
    names = {name for name in zipfile.ZipFile(archive).namelist() if not name.endswith("/")}
    assert len(names) == len(FILES) + 1
    assert names >= {
        "predict/pr_public/predict.ark",
        "predict/sv_public/predict.txt",
        "predict/ic_public/predict.csv",
        "predict/er_fold3_public/predict.txt",
        "predict/sd_public/mix_1.h5",
        "predict/qbe_public/benchmark.stdlist.xml",
    }
    assert zipfile.ZipFile(archive).read("predict/er_fold3_public/predict.txt") == b"er-fold3"


def test_a_missing_prediction_leaves_the_old_submission(tmp_path):
    (tmp_path / "pr").mkdir()
    (tmp_path / "pr" / "test-hyp.ark").write_text("words")
    archive = write_submission({"pr": tmp_path / "pr"}, tmp_path / "out")
    with pytest.raises(UserError, match=r"test_predict\.txt: no prediction of sid"):
        write_submission({"pr": tmp_path / "pr", "sid": tmp_path / "sid"}, tmp_path / "out")
    assert archive.exists()
