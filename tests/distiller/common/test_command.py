import os
import subprocess
import sys
from pathlib import Path

import pytest

from distiller.common.command import Failed, Parser, run_command
from distiller.common.files import require_utf8
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


# --- paths and streams

ROOT = Path(__file__).parents[3]
PRINTS = """
import os, sys
from distiller.common.command import Parser, run_command
parser = Parser(prog="command.py")
parser.add_argument("--corpus")
def command():
    print(parser.parse_args().corpus)
    print("2 ö 3 → 6", *range(20_000))
    print("warned ö", file=sys.stderr)
sys.exit(run_command(command))
"""


def printed(shell: str, folder: Path = ROOT, **environment: str) -> tuple[int, bytes, bytes]:
    """Exit code, stdout and stderr of the command above, started as the shell does it."""
    ended = subprocess.run(
        ["bash", "-c", shell, sys.executable, PRINTS],
        cwd=folder, capture_output=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.parametrize(
    ("shell", "code", "error"),
    [
        ('"$0" -c "$1" | head -n 1; exit ${PIPESTATUS[0]}', 1, b""),
        ('"$0" -c "$1" 2>&1 | head -c 1 >/dev/null; exit ${PIPESTATUS[0]}', 1, b""),
        ('"$0" -c "$1" >&-', 0, "warned ö\n".encode()),
        ('"$0" -c "$1" >&- 2>&- <&-', 0, b""),
        ('"$0" -c "$1" >/dev/full', 2, b"cannot be used: No space left on device\n"),
        ('"$0" -c "$1" 2>/dev/full >/dev/null', 2, b""),
    ],
)
def test_an_output_that_is_closed_or_full(shell: str, code: int, error: bytes) -> None:
    ended, _, said = printed(shell)
    assert said.endswith(error)
    assert b"Traceback" not in said
    assert b"ignored" not in said
    assert ended == code


def test_a_terminal_without_our_characters() -> None:
    code, out, error = printed('"$0" -c "$1"', PYTHONIOENCODING="ascii")
    assert code == 0
    assert out.startswith(b"None\n2 \\xf6 3 \\u2192 6 0 1")
    assert error == b"warned \\xf6\n"


@pytest.mark.parametrize("code", [0xDCE9, 0xD800])  # a byte of a name, and what no name has
def test_text_that_no_file_name_can_be_is_shown_without_it(code: int) -> None:
    with pytest.raises(UserError, match=r"^caf\ufffd is not UTF-8, but paths must be"):
        require_utf8(f"caf{chr(code)}")


def test_a_path_that_is_no_utf8(tmp_path: Path) -> None:
    code, out, error = printed('"$0" -c "$1" --corpus $\'caf\\xe9\'', PYTHONUTF8="1")
    assert (code, out) == (2, b"")
    assert error.decode() == "error: caf\ufffd is not UTF-8, but paths must be; rename it, or set a UTF-8 locale\n"
    inside = tmp_path / os.fsdecode(b"caf\xe9")
    inside.mkdir()
    code, out, error = printed('"$0" -c "$1"', inside)
    assert (code, out, error.count(b"\n")) == (2, b"", 1)
    assert b"is not UTF-8" in error


def test_a_folder_that_has_been_removed() -> None:
    code, out, error = printed('cd "$(mktemp -d)" && rmdir "$PWD" && "$0" -c "$1"')
    assert (code, out, error) == (2, b"", b"error: the current folder has been removed; change to another\n")
