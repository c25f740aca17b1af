"""The SUPERB table: rows of scores as Markdown, LaTeX, HTML and lines of scores.csv."""

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pandas import DataFrame

from downstream_recipes.scores.metrics import COLUMNS, Column, Row
from downstream_recipes.suite.suite import Score

SCORE_COLUMNS = ("upstream", "task", "metric", "value", "unit", "split", "seconds", "command")  # of scores.csv


def measured_row(name: str, params_m: float | None, scores: Sequence[Score], miniature: bool) -> Row:
    """The row of a suite."""
    return Row(name, params_m, {f"{score.task}_{score.metric}": score.value for score in scores}, miniature=miniature)


def used_columns(rows: Sequence[Row]) -> list[Column]:
    """The table's columns in which at least one row has a value."""
    return [column for column in COLUMNS if any(column.key in row.scores for row in rows)]


def frame(rows: Sequence[Row]) -> DataFrame:
    """The table as text: name, millions of parameters, scores and, if a row has them, the two overall scores.

    Titles end with an arrow for the better direction.
    """

    def cell(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    table = {"Upstream": [row.name for row in rows], "Params (M)": [cell(row.params_m, 2) for row in rows]}
    for column in used_columns(rows):
        title = f"{column.title} {'↑' if column.metric.higher_better else '↓'}"
        table[title] = [cell(row.scores.get(column.key), column.metric.digits) for row in rows]
    if any(row.overall is not None for row in rows):
        table["Overall ↑"] = [cell(row.overall, 1) for row in rows]
        table["General. ↑"] = [cell(row.generalizability, 0) for row in rows]
    return DataFrame(table)


def markdown(rows: Sequence[Row], notes: Sequence[str]) -> str:
    table = frame(rows).map(lambda cell: cell.replace("|", r"\|"))
    alignment = ["left", *["right"] * (len(table.columns) - 1)]
    text = table.to_markdown(index=False, disable_numparse=True, colalign=alignment)
    return "\n".join([text, "", *(f"- {note}" for note in notes), ""])


def latex(rows: Sequence[Row], notes: Sequence[str]) -> str:
    """A tabular of the booktabs package."""
    table = frame(rows)
    text = table.to_latex(index=False, escape=True, column_format=f"l{'r' * (len(table.columns) - 1)}")
    text = text.replace("↑", r"$\uparrow$").replace("↓", r"$\downarrow$")
    return "\n".join([*(f"% {note}" for note in notes), text])


STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 84rem; padding: 0 1rem; color: #1b1f24 }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td { white-space: nowrap }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid #d9dde2 }
th { border-bottom: 2px solid #1b1f24; font-weight: 600; vertical-align: bottom }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff }
tbody tr:nth-child(-n+MEASURED) td { background: #eef5ff; font-weight: 600 }
figure { margin: 2rem 0 } img { max-width: 100% } figcaption, li { color: #57606a }
""".strip()


def web_page(rows: Sequence[Row], notes: Sequence[str], title: str, figures: Mapping[str, Path]) -> str:
    """A self-contained page: the table, measured rows (which come first) highlighted, and figures (caption -> PNG)."""
    table = frame(rows).rename(columns=lambda title: "\N{NO-BREAK SPACE}".join(title.rsplit(" ", 1)))  # for the arrow
    style = STYLE.replace("MEASURED", str(sum(not row.published for row in rows)))
    title = html.escape(title)
    images = [
        f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,'
        f'{base64.b64encode(path.read_bytes()).decode()}"><figcaption>{html.escape(caption)}</figcaption></figure>'
        for caption, path in figures.items()
    ]
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width"><style>{style}</style></head><body>
<h1>{title}</h1>
<div class="scroll">{table.to_html(index=False, border=0)}</div>
<ul>{items}</ul>
{"".join(images)}
</body></html>
"""


def score_lines(upstream: str, scores: Sequence[Score], row: Row) -> list[dict[str, Any]]:
    """Lines of scores.csv: one for each metric, and the two scores over the table when the row has them."""
    lines = [{"upstream": upstream, **asdict(score)} for score in scores]
    for name, value in (("overall", row.overall), ("generalizability", row.generalizability)):
        if value is not None:
            line = {"upstream": upstream, "task": name, "metric": "score", "value": round(value, 2), "split": "test"}
            lines.append(line)
    return lines
