"""Bars on a terminal, silence elsewhere."""

import io
import os
import sys

import pytest

from distiller.common.progress import progress, quiet_stderr


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_only_on_a_terminal(capfd):
    assert list(progress([1, 2, 3], "Counting")) == [1, 2, 3]
    assert capfd.readouterr() == ("", "")
    terminal = Terminal()
    assert list(progress(iter([1, 2, 3]), "Counting", total=3, stderr=terminal)) == [1, 2, 3]
    assert "Counting" in terminal.getvalue()


def test_quiet_stderr_gives_stderr_back(capfd):
    with quiet_stderr() as stderr:
        os.write(2, b"hidden")
        stderr.write("shown")
    os.write(2, b" again")
    assert capfd.readouterr().err == "shown again"
    with pytest.raises(KeyError), quiet_stderr():
        raise KeyError
    print("back", file=sys.stderr)
    assert capfd.readouterr().err == "back\n"
