"""The command distiller/grid.py: mistakes are one line."""

from pathlib import Path

import pytest

from distiller import grid


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (
            ["--methods=skil"],
            "must be one of skill, dphubert, star-pruned, star, distilhubert; did you mean skill",
        ),
        (["--also", "raw"], "--also is 'raw', but it must be at least"),
        (["--also", "a/b star"], "--also is 'a/b', but it must be a name of letters, digits and"),
        (["--also", "skill dphubert"], "--also is 'skill', but it must be a unique name"),
        (["--also", "raw str"], "--method str does not exist; it could be one of"),
        (["--seeds=1,x"], "--seeds: invalid int list value: '1,x'"),
        (["--seeds=-1"], "--seeds is -1, but it must be an integer from 0"),
        (["--jobs=0"], "--jobs is 0, but it must be an integer of at least 1"),
        (["--report"], "contains no finished run"),
        (["--targets=0.5,1.5"], "--targets is 1.5, but it must be a share between 0 and 1"),
        (["--paired=0"], "--paired is 0.0, but it must be"),
        (["trainer.step=3"], "did you mean trainer.steps"),
        (["--table=file/t.csv"], "file cannot be written: file is a file"),
    ],
)
def test_a_mistake_is_one_line(
    argv: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert grid.main(["--output=out", "--table=t.csv", *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert line in error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
