"""The command distiller/export.py: wrong options are refused before any work."""

from pathlib import Path

import pytest

from distiller import export


def refused(capsys, *argv: str) -> str:
    assert export.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["absent", "--to", "onnx", "--output", "o"], "absent does not exist"),
        (["s", "--to", "keras", "--output", "o"], "invalid choice: 'keras'"),
        (["s", "--output", "o"], "the following arguments are required: --to"),
        (["s", "--to", "transformers", "--output", "o", "--quantize", "int8"], "--quantize int8 needs --to onnx"),
        (
            ["s", "--to", "onnx", "--output", "o", "--quantize", "static-int8"],
            "--calibrate CORPUS must be given together",
        ),
        (["s", "--to", "onnx", "--output", "o", "--calibrate", "c"], "--calibrate CORPUS must be given together"),
        (
            ["s", "--to", "onnx", "--output", "o", "--quantize", "int8", "--calibrate", "c"],
            "--quantize static-int8 and --calibrate CORPUS must be given together",
        ),
        (
            ["s", "--to", "torch-export", "--output", "o", "--quantize", "static-int8", "--calibrate", "c"],
            "--quantize static-int8 needs --to onnx, not --to torch-export",
        ),
        (["s", "--to", "executorch", "--output", "o", "--quantize", "int8"], "--quantize int8 needs --to onnx"),
        (
            ["s", "--to", "onnx", "--output", "o", "--longest", "9"],
            "--longest needs --to executorch",
        ),
        (
            ["s", "--to", "executorch", "--output", "o", "--longest", "1"],
            "--longest is 1.0, but it must be above 1",
        ),
        (["s", "--to", "executorch", "--output", "o", "--longest", "nan"], "--longest is nan, but it must be above 1"),
        (["s", "--to", "onnx", "--output", "o", "--weights", "1,2"], "--weights needs --states weighted"),
        (
            ["s", "--to", "onnx", "--output", "o", "--states", "weighted", "--weights", "1,x"],
            "--weights: invalid float list value: '1,x'",
        ),
        (["s", "--to", "transformers", "--output", "o", "--states", "last"], "--states and --weights do not apply to"),
    ],
)
def test_a_wrong_command_is_one_line(argv, said, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, *argv)


@pytest.mark.parametrize(
    "argv",
    [
        ["--to", "onnx", "--output", "file/x.onnx"],
        ["--to", "torch-export", "--output", "file/x.pt2"],
        ["--to", "executorch", "--output", "file/x.pte"],
        ["--to", "transformers", "--output", "file"],
    ],
)
def test_an_output_below_a_file_is_refused_before_any_work(argv, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert "cannot be written: file is a file" in refused(capsys, "not/even/opened", *argv)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
