import re
from pathlib import Path

import numpy as np
import pytest

from distiller.common.files import read_csv, write_csv
from downstream_recipes.scores.metrics import MAIN_COLUMNS, references
from downstream_recipes.suite import tables
from downstream_recipes.suite.figures import _label_heights, layers_by_task, score_against_parameters, tasks_as_bars
from downstream_recipes.suite.suite import Score

PUBLISHED = references()[1:]
STAR = next(row for row in PUBLISHED if row.name == "STaRHuBERT (LS 960)")


def cells(text: str) -> list[str]:
    """Lines without the spaces that align the columns."""
    return [re.sub(" +", " ", line) for line in text.splitlines()]


def scores(keys=None) -> list[Score]:
    """STaRHuBERT's published scores as if a suite had measured them."""
    return [
        Score(column.task.code, column.metric.name, STAR.scores[column.key], "%", "test", 1.0, "python run -e a,b")
        for column in MAIN_COLUMNS
        if keys is None or column.key in keys
    ]


def test_a_whole_row_has_both_scores_and_a_part_has_none():
    row = tables.measured_row("star", 22.31, scores(), miniature=False)
    assert row.overall == pytest.approx(79.5, abs=0.05)
    assert row.generalizability == pytest.approx(887, abs=2)
    assert tables.measured_row("star", 22.31, scores({"pr_per"}), miniature=False).overall is None
    assert tables.measured_row("star", 22.31, scores(), miniature=True).overall is None


def test_published_rows_follow_ours():
    rows = [tables.measured_row("star & co_1", 22.31, scores(), miniature=False), *PUBLISHED]
    assert len(rows) == 1 + 16
    lines = cells(tables.markdown(rows, ["a note"]))
    assert lines[0].startswith("| Upstream | Params (M) | PR PER ↓ | ASR WER ↓ | KS Acc ↑ | QbE MTWV ↑ |")
    assert lines[2].startswith("| star & co_1 | 22.31 | 8.16 | 9.35 | 96.27 | 0.0688 |")
    assert lines[2].endswith("| 79.5 | 887 |")
    assert next(line for line in lines if "SKWavLM" in line).count("| - ") == 10
    assert lines[-1] == "- a note"
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


def test_columns_that_nobody_has_are_left_out():
    row = tables.measured_row("star", None, scores({"pr_per", "sid_acc"}), miniature=True)
    lines = cells(tables.markdown([row], []))
    assert lines[0] == "| Upstream | Params (M) | PR PER ↓ | SID Acc ↑ |"
    assert re.fullmatch(r"\|:-+\|-+:\|-+:\|-+:\|", lines[1])
    assert lines[2] == "| star | - | 8.16 | 77.58 |"


def test_a_name_cannot_break_the_table():
    row = tables.measured_row("a|b", 22.30, scores({"pr_per"}), miniature=True)
    assert cells(tables.markdown([row], []))[2] == r"| a\|b | 22.30 | 8.16 |"


def test_extra_tasks_are_columns_and_no_part_of_the_overall_score(tmp_path):
    extra = [Score("se", "stoi", 0.93, "", "test", 1.0, ""), Score("ss", "si_sdr", 9.5, "dB", "test", 1.0, "")]
    row = tables.measured_row("star", 22.31, [*scores(), *extra], miniature=False)
    assert row.overall == pytest.approx(79.5, abs=0.05)
    lines = cells(tables.markdown([row], []))
    assert lines[0].endswith("| SE STOI ↑ | SS SI-SDRi ↑ | Overall ↑ | General. ↑ |")
    assert lines[2].endswith("| 0.9300 | 9.50 | 79.5 | 887 |")
    alone = tables.measured_row("star", 22.31, extra, miniature=False)
    assert tasks_as_bars([alone], tmp_path / "bars.png") is None  # they are no points of 100


def test_latex_is_a_tabular_that_compiles():
    rows = [tables.measured_row("star & co_1", 22.31, scores(), miniature=False), *PUBLISHED]
    text = tables.latex(rows, ["50% of it"])
    assert r"star \& co\_1 & 22.31 & 8.16" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    columns = re.search(r"\\begin\{tabular\}\{(l r*|lr*)\}", text)[1]
    assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in body} == {len(columns)}
    assert "↑" not in text
    assert text.startswith("% 50% of it")


def test_the_page_is_self_contained(tmp_path: Path):
    rows = [tables.measured_row("<star>", 22.31, scores(), miniature=False), *PUBLISHED]
    figure = tasks_as_bars(rows, tmp_path / "tasks.png")
    page = tables.web_page(rows, ["a < b"], "SUPERB: <star>", {"Tasks": figure})
    assert "&lt;star&gt;" in page
    assert "a &lt; b" in page
    assert 'src="data:image/png;base64,' in page
    assert page.count("<tr") == 1 + len(rows)
    assert "tr:nth-child(-n+1) td" in page  # the measured row is highlighted
    assert "http" not in page


def test_scores_csv_has_the_agreed_columns(tmp_path):
    row = tables.measured_row("star", 22.31, scores(), miniature=False)
    path = write_csv(tmp_path / "scores.csv", tables.score_lines("starhubert", scores(), row), tables.SCORE_COLUMNS)
    lines = read_csv(path)
    assert list(lines[0]) == ["upstream", "task", "metric", "value", "unit", "split", "seconds", "command"]
    assert len(lines) == 11 + 2
    assert lines[0]["command"] == "python run -e a,b"
    assert [line["task"] for line in lines[-2:]] == ["overall", "generalizability"]


def test_figures_are_drawn_where_there_is_something_to_draw(tmp_path):
    rows = [tables.measured_row("star", 22.31, scores(), miniature=False), *PUBLISHED]
    assert score_against_parameters(rows, tmp_path / "a.png").stat().st_size > 10_000
    assert score_against_parameters(rows[:1], tmp_path / "b.png") is None
    assert tasks_as_bars(rows, tmp_path / "c.png").stat().st_size > 10_000
    assert layers_by_task({"pr": [0.2, 0.8], "sid": [0.5, 0.5]}, tmp_path / "d.png").stat().st_size > 5_000
    assert layers_by_task({}, tmp_path / "e.png") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "c.png", "d.png"]


@pytest.mark.parametrize("count", [1, 2, 9, 17, 40])
@pytest.mark.parametrize("lowest", [66.0, 79.0, 80.0])
def test_labels_stay_within_the_axes_and_apart(count, lowest):
    values = sorted([lowest, *np.linspace(79, 82, count - 1)])
    heights = _label_heights(values)
    assert min(heights) >= 0
    assert max(heights) <= 1
    gap = min(0.06, 0.96 / max(count - 1, 1))
    assert np.diff(heights).min(initial=1) >= gap - 1e-9


def test_points_put_every_metric_the_right_way_round():
    for column in MAIN_COLUMNS:
        metric, value = column.metric, STAR.scores[column.key]
        step = 0.01 if metric.higher_better else -0.01
        assert np.sign(metric.points(value + step) - metric.points(value)) == 1
