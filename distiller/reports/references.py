"""Reference rows for a run's probes, taken from a run that has already measured them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distiller.common.values import difference
from distiller.recipes.recipe import ProbeConfig
from upstream.errors import UserError

REFERENCES = ("filterbank", "stacked_filterbank", "teacher")  # the same for every student

Rows = dict[str, dict[str, Any]]  # as from `report.probe_all`


def load_references(config: ProbeConfig, teacher: Mapping[str, Any]) -> Rows:
    """The rows of the filterbanks and the teacher in the finished run `probe.references`; none without one.

    Args:
        teacher: identity of this run's teacher.

    Raises:
        UserError: it is not a finished run, or has another teacher or other probes.
    """
    if config.references is None:
        return {}
    folder = Path(config.references)
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        inputs = json.loads((folder / "inputs.json").read_text(encoding="utf-8"))
        rows = {name: report["probe"][name] for name in REFERENCES}
        found = {"teacher": inputs["teacher"]} | {key: report["recipe"]["probe"][key] for key in ("enabled", "words")}
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(f"probe.references {folder} is not a finished run that was probed") from None
    if other := difference(found, {"teacher": dict(teacher), "enabled": config.enabled, "words": config.words}):
        raise UserError(f"probe.references {folder} has another teacher or other probes: {other}")
    return rows
