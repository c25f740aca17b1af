import pytest

from distiller.common.command import Failed, Parser, run_command
from upstream.errors import UserError


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (UserError("--tasks is prr"), 2, ["error: --tasks is prr"]),
        (UserError("two\nlines"), 2, ["error: two lines"]),
        (Failed("ks: it broke", "er: it broke\ntoo"), 1, ["error: ks: it broke", "error: er: it broke too"]),
    ],
)
def test_an_error_is_a_line_and_an_exit_code(capsys, error, code, lines):
    assert run_command(lambda: fail(error)) == code
    assert capsys.readouterr().err.splitlines() == lines


def test_what_a_command_returns_is_its_exit_code():
    assert [run_command(lambda: None), run_command(lambda: 1)] == [0, 1]


def test_a_mistyped_option_is_one_line(capsys):
    parser = Parser(prog="command.py")
    parser.add_argument("--corpora")
    assert run_command(lambda: parser.parse_args(["--corpra", "mini"])) == 2
    assert capsys.readouterr().err == "error: option --corpra does not exist; did you mean --corpora?\n"
