"""The printed table of probed models."""

from pathlib import Path
from typing import Any

import pytest

from distiller.probes.evaluate import evaluate
from distiller.probes.words import Words


class Fixed(Words):
    """Takes no recordings; the result has as many columns as the widest probe."""

    def run(self, represent: object, name: str = "") -> dict[str, Any]:
        keys = [f"{key}{best}" for best in ("", "_best") for key in ("phone", "phone_unseen", "speaker")]
        return dict.fromkeys(keys, 50.0) | {"layers": {"phone": [50.0]}}


def test_names_that_differ_at_their_end_can_be_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "exp/narrow/a-student-with-a-long-name-1"
    evaluate({name: None}, [(Path("x"), Fixed({}))], tmp_path / "table.csv")  # type: ignore[dict-item]  # not probed
    first_column = "".join(line[1:16].strip() for line in capsys.readouterr().out.splitlines())
    assert name in first_column
