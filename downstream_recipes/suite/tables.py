"""The SUPERB table: rows of scores as Markdown, LaTeX, HTML and CSV."""

import base64
import csv
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from downstream_recipes.scores.metrics import (
    EXTRA_METRICS,
    METRICS,
    Metric,
    generalizability_score,
    overall_score,
    references,
)
from downstream_recipes.suite.suite import Score

MISSING = "-"
TITLES = {
    "per": "PER",
    "wer": "WER",
    "acc": "Acc",
    "mtwv": "MTWV",
    "eer": "EER",
    "der": "DER",
    "f1": "F1",
    "cer": "CER",
    "pesq": "PESQ",
    "stoi": "STOI",
    "si_sdr": "SI-SDRi",
}
FRACTIONS = ("mtwv", "stoi")  # four digits
COLUMNS = ("upstream", "task", "metric", "value", "unit", "split", "seconds", "command")  # of scores.csv


@dataclass(frozen=True)
class Row:
    """One model. `scores` has `Metric.key`s; both scores over the table are None unless every metric is there."""

    name: str
    params_m: float | None
    scores: Mapping[str, float]
    overall: float | None = None
    generalizability: float | None = None
    published: bool = False


def own_row(name: str, params_m: float | None, scores: Sequence[Score], miniature: bool) -> Row:
    """A suite's row. On miniature corpora the scores over the table would mean nothing and are left out."""
    values = {f"{score.task}_{score.metric}": score.value for score in scores}
    if miniature or any(metric.key not in values for metric in METRICS):
        return Row(name, params_m, values)
    return Row(name, params_m, values, overall_score(values), generalizability_score(values))


def published_rows() -> list[Row]:
    """The models of the papers' tables, both scores computed where the whole row is printed."""
    rows = []
    for reference in references()[1:]:  # the first is no model
        whole = len(reference.scores) == len(METRICS)
        name = f"{reference.upstream} ({reference.corpus})" if reference.corpus else reference.upstream
        scores = (overall_score, generalizability_score) if whole else ()
        rows.append(
            Row(
                name,
                reference.params_m,
                reference.scores,
                *(score(reference.scores) for score in scores),
                published=True,
            )
        )
    return rows


def used_metrics(rows: Sequence[Row]) -> list[Metric]:
    """The table's columns that some row has a value in."""
    return [metric for metric in (*METRICS, *EXTRA_METRICS) if any(metric.key in row.scores for row in rows)]


def cells(row: Row, metrics: Sequence[Metric], with_summary: bool) -> list[str]:
    """A row as text: name, millions of parameters, scores (four digits for MTWV and STOI, two for others)."""

    def number(value: float | None, digits: int) -> str:
        return MISSING if value is None else f"{value:.{digits}f}"

    values = [number(row.scores.get(metric.key), 4 if metric.name in FRACTIONS else 2) for metric in metrics]
    summary = [number(row.overall, 1), number(row.generalizability, 0)] if with_summary else []
    return [row.name, number(row.params_m, 2), *values, *summary]


def title(task: str) -> str:
    """A task's code as SUPERB writes it."""
    return "QbE" if task == "qbe" else task.upper()


def header(metrics: Sequence[Metric], with_summary: bool) -> list[str]:
    """The titles of what `cells` gives, with the direction that is better."""
    names = [f"{title(metric.task)} {TITLES[metric.name]} {'↑' if metric.higher_better else '↓'}" for metric in metrics]
    return ["Upstream", "Params (M)", *names, *(["Overall ↑", "General. ↑"] if with_summary else [])]


def _table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    metrics, with_summary = used_metrics(rows), any(row.overall is not None for row in rows)
    return header(metrics, with_summary), [cells(row, metrics, with_summary) for row in rows]


def markdown(rows: Sequence[Row], notes: Sequence[str]) -> str:
    titles, body = _table(rows)
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *body]
    table = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
    return "\n".join([table, "", *(f"- {note}" for note in notes), ""])


def latex(rows: Sequence[Row], notes: Sequence[str]) -> str:
    """A tabular of the booktabs package."""
    arrows = {"↑": r"$\uparrow$", "↓": r"$\downarrow$"}

    def escape(text: str) -> str:
        for symbol in ("\\", "&", "%", "_", "#", "$", "{", "}"):
            text = (
                text.replace(symbol, r"\textbackslash{}" if symbol == "\\" else f"\\{symbol}")
                if symbol in text
                else text
            )
        for symbol, command in arrows.items():
            text = text.replace(symbol, command)
        return text

    titles, body = _table(rows)
    lines = [" & ".join(map(escape, line)) + r" \\" for line in [titles, *body]]
    comments = [f"% {note}" for note in notes]
    start, end = rf"\begin{{tabular}}{{l{'r' * (len(titles) - 1)}}}", r"\end{tabular}"
    return "\n".join([*comments, start, r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule", end, ""])


STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 84rem; padding: 0 1rem; color: #1b1f24 }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td { white-space: nowrap }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid #d9dde2 }
th { border-bottom: 2px solid #1b1f24; font-weight: 600; vertical-align: bottom }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff }
tr.own td { background: #eef5ff; font-weight: 600 }
figure { margin: 2rem 0 } img { max-width: 100% } figcaption, li { color: #57606a }
""".strip()


def web_page(rows: Sequence[Row], notes: Sequence[str], title: str, figures: Mapping[str, Path]) -> str:
    """A page that stands alone: the table and the figures (caption -> PNG)."""
    titles, body = _table(rows)
    unbroken = ["\N{NO-BREAK SPACE}".join(cell.rsplit(" ", 1)) for cell in titles]  # the arrow stays with its metric
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in unbroken)
    lines = [
        f"<tr{'' if row.published else ' class=own'}>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in line)
        + "</tr>"
        for row, line in zip(rows, body, strict=True)
    ]
    images = [
        f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,'
        f'{base64.b64encode(path.read_bytes()).decode()}"><figcaption>{html.escape(caption)}</figcaption></figure>'
        for caption, path in figures.items()
    ]
    remarks = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return "\n".join(
        [
            "<!DOCTYPE html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>',
            f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>',
            f"<h1>{html.escape(title)}</h1>",
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>',
            *lines,
            f"</tbody></table></div><ul>{remarks}</ul>",
            *images,
            "</body></html>",
            "",
        ]
    )


def scores_csv(upstream: str, scores: Sequence[Score], row: Row) -> str:
    """scores.csv: a line per metric, and the two scores over the table when the row has them."""
    lines: list[list[object]] = [list(COLUMNS)]
    lines += [
        [upstream, score.task, score.metric, score.value, score.unit, score.split, score.seconds, score.command]
        for score in scores
    ]
    for name, value in (("overall", row.overall), ("generalizability", row.generalizability)):
        if value is not None:
            lines.append([upstream, name, "score", round(value, 2), "", "test", "", ""])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
