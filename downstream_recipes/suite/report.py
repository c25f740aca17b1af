"""What a suite leaves: scores.csv, the table in three forms, the figures, the submission."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distiller.common.files import write_text
from downstream_recipes.suite import figures, tables
from downstream_recipes.suite.submission import write_submission
from downstream_recipes.suite.suite import Score, Suite, read_state
from downstream_recipes.suite.tables import Row
from downstream_recipes.tasks.tasks import TASKS
from upstream.errors import UserError

MINIATURE_NOTE = (
    "Miniature synthetic corpora: the figures compare models on the same corpora only; overall scores and published "
    "rows are left out, they would mean nothing here."
)
DEPARTURES = "Schedulers enabled and SID's learning rate x 10, as in the STaR evaluation; otherwise s3prl's settings."


def write_report(suite: Suite, beside: Sequence[Path] = ()) -> str:
    """Write everything from the finished tasks in the suite's output; the table as Markdown, with where it all is.

    Args:
        beside: outputs of other suites, for further rows.

    Raises:
        UserError: no task is finished, or as `rows_beside`.
    """
    done = done_tasks(suite.output)
    if not done:
        raise UserError(f"{suite.output}: no task is finished, so there is no table")
    scores = [score for entry in done.values() for score in entry["scores"]]
    parameters = suite.described["parameters"] / 1e6
    own = tables.own_row(_title(suite.upstream, suite.output), parameters, scores, suite.miniature)
    summary = {"name": own.name, "params_m": parameters, "miniature": suite.miniature}
    write_text(suite.output / "model.json", json.dumps(summary) + "\n")
    rows = [*rows_beside(beside, suite.miniature), own]
    rows += [] if suite.miniature else tables.published_rows()
    notes = [entry["note"] for entry in done.values() if entry["note"]]
    notes += [MINIATURE_NOTE] if suite.miniature else [DEPARTURES]
    text = tables.markdown(rows, notes)
    drawn = _draw(suite.output, rows, {code: entry["scores"][0] for code, entry in done.items()})
    for name, content in {
        "scores.csv": tables.scores_csv(suite.upstream, scores, own),
        "table.md": text,
        "table.tex": tables.latex(rows, notes),
        "table.html": tables.web_page(rows, notes, f"SUPERB: {own.name}", drawn),
    }.items():
        write_text(suite.output / name, content)
    return f"{text}\n{suite.output}: scores.csv, table.md, table.tex, table.html, {len(drawn)} figures"


def done_tasks(output: Path) -> dict[str, dict[str, Any]]:
    """Task -> its scores and note, in the table's order."""
    states = {code: read_state(output, task) for code, task in TASKS.items()}
    return {code: state for code, state in states.items() if state and state["scores"] is not None}


def _title(upstream: str, output: Path) -> str:
    return upstream if output.name == upstream else f"{upstream} ({output.name})"


def rows_beside(folders: Sequence[Path], miniature: bool) -> list[Row]:
    """The rows of other outputs, for a table of miniature corpora or of real ones.

    Raises:
        UserError: one of them is no output with a table, or its corpora are of the other kind.
    """
    return [_row_of(folder, miniature) for folder in folders]


def _row_of(folder: Path, miniature: bool) -> Row:
    path = folder / "model.json"
    if not path.exists():
        raise UserError(f"--beside {folder}: no output of superb.py that has a table")
    model = json.loads(path.read_text())
    if model["miniature"] != miniature:
        kinds = ("miniature", "real") if model["miniature"] else ("real", "miniature")
        raise UserError(f"--beside {folder}: its scores are of {kinds[0]} corpora, this table's of {kinds[1]} ones")
    scores = [score for entry in done_tasks(folder).values() for score in entry["scores"]]
    return tables.own_row(model["name"], model["params_m"], scores, model["miniature"])


def _draw(output: Path, rows: Sequence[Row], done: Mapping[str, Score]) -> dict[str, Path]:
    """Caption -> figure, for the figures that there is something to draw for."""
    weights = {code: found for code, score in done.items() if (found := _layer_weights(score)) is not None}
    drawn = {
        "Overall score against parameters": figures.score_against_parameters(rows, output / "parameters.png"),
        "Tasks as points of 100": figures.tasks_as_bars(rows, output / "tasks.png"),
        "Weights that each task learned for the upstream's states": figures.layers_by_task(
            weights, output / "layers.png"
        ),
    }
    return {caption: path for caption, path in drawn.items() if path is not None}


def _layer_weights(score: Score) -> list[float] | None:
    """Of the checkpoint that a score comes from (ER: of its first fold); None where nothing is trained."""
    checkpoint = _option(score, "-e")
    return figures.layer_weights(Path(checkpoint)) if checkpoint else None


def _option(score: Score, flag: str) -> str | None:
    """What a flag of the (first) command behind a score says."""
    words = shlex.split(score.command)
    return words[words.index(flag) + 1] if flag in words else None


def write_submission_of(suite: Suite, directory: Path) -> Path:
    """The leaderboard's files of every finished task.

    Raises:
        UserError: a prediction is missing.
    """
    experiments = {}
    for code, entry in done_tasks(suite.output).items():
        folder = _evaluated(entry["scores"][0])
        if code == "er":
            experiments |= {f"er-fold{fold}": folder.parent / f"fold{fold}" for fold in range(1, 6)}
        else:
            experiments[code] = folder
    return write_submission(experiments, directory)


def _evaluated(score: Score) -> Path:
    """Where the evaluation behind a score wrote its predictions."""
    override, folder, checkpoint = (_option(score, flag) for flag in ("-o", "-p", "-e"))
    if override is not None:
        return Path(override.removeprefix("args.expdir="))
    return Path(folder) if folder is not None else Path(str(checkpoint)).parent
