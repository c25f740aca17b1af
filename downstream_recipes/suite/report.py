"""The output of a suite: scores.csv, the table in three formats, the figures."""

import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context

from distiller.common.files import write_csv, write_json, write_text
from downstream_recipes.scores.metrics import Row, references
from downstream_recipes.suite import figures, tables
from downstream_recipes.suite.suite import Result, Suite, kept_result
from downstream_recipes.tasks.tasks import TASKS, Task
from upstream.errors import UserError

MINIATURE_NOTE = (
    "Miniature synthetic corpora: scores only compare models on the same corpora; overall scores and published rows "
    "would be meaningless and are left out."
)
DEPARTURES = "Schedulers enabled and SID's learning rate x 10, as in the STaR evaluation; otherwise s3prl's settings."


def write_report(suite: Suite, beside: Sequence[Path] = ()) -> str:
    """Write the report on the finished tasks in the suite's output; returns the table as Markdown, and the files.

    Args:
        beside: outputs of other suites, for further rows.

    Raises:
        UserError: no task is finished, or as `read_rows`.
    """
    done = done_tasks(suite.output)
    if not done:
        raise UserError(f"{suite.output} has no finished task, so there is no table")
    scores = [score for result in done.values() for score in result.scores]
    parameters = suite.described["parameters"] / 1e6
    folder = suite.output.name.encode(errors="replace").decode()  # text for figures
    name = suite.upstream if folder == suite.upstream else f"{suite.upstream} ({folder})"
    row = tables.measured_row(name, parameters, scores, suite.miniature)
    published = [] if suite.miniature else references()[1:]  # the first is not a model
    rows = [*read_rows(beside, suite.miniature), row, *published]
    write_json(suite.output / "model.json", {"name": name, "params_m": parameters, "miniature": suite.miniature})
    notes = [result.note for result in done.values() if result.note]
    notes.append(MINIATURE_NOTE if suite.miniature else DEPARTURES)
    text, drawn = tables.markdown(rows, notes), _draw(suite.output, rows, done)
    write_csv(suite.output / "scores.csv", tables.score_lines(suite.upstream, scores, row), tables.SCORE_COLUMNS)
    write_text(suite.output / "table.md", text)
    write_text(suite.output / "table.tex", tables.latex(rows, notes))
    write_text(suite.output / "table.html", tables.web_page(rows, notes, f"SUPERB: {name}", drawn))
    return f"{text}\n{suite.output}: scores.csv, table.md, table.tex, table.html, {len(drawn)} figures"


def done_tasks(output: Path) -> dict[Task, Result]:
    """The results of the finished tasks, in the table's order."""
    results = {task: kept_result(output, task) for task in TASKS.values()}
    return {task: result for task, result in results.items() if result is not None}


def read_rows(outputs: Sequence[Path], miniature: bool) -> list[Row]:
    """The rows of other outputs, for a table of miniature or of real corpora.

    Raises:
        UserError: one of them has no table, or a table for the other kind of corpora.
    """
    rows = []
    for output in outputs:
        path = output / "model.json"
        if not path.exists():
            raise UserError(f"--beside {output} is not an output of superb.py with a table")
        model = json.loads(path.read_text())
        if model["miniature"] != miniature:
            kinds = ("miniature", "real") if model["miniature"] else ("real", "miniature")
            raise UserError(f"--beside {output} has scores of {kinds[0]} corpora, but this table is of {kinds[1]} ones")
        scores = [score for result in done_tasks(output).values() for score in result.scores]
        rows.append(tables.measured_row(model["name"], model["params_m"], scores, miniature))
    return rows


@rc_context({"text.parse_math": False})  # a name may have a $
def _draw(output: Path, rows: Sequence[Row], done: dict[Task, Result]) -> dict[str, Path]:
    """Caption -> figure, for the figures that there is data for."""
    checkpoints = {task.title: output / result.checkpoint for task, result in done.items() if result.checkpoint}
    weights = {title: values for title, path in checkpoints.items() if (values := figures.layer_weights(path))}
    layers = figures.layers_by_task(weights, output / "layers.png")
    drawn = {
        "Overall score against parameters": figures.score_against_parameters(rows, output / "parameters.png"),
        "Tasks as points of 100": figures.tasks_as_bars(rows, output / "tasks.png"),
        "Weights that each task learned for the upstream's states": layers,
    }
    return {caption: path for caption, path in drawn.items() if path is not None}
