import ast
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile

from distiller.common.provenance import parameter_count
from distiller.recipes.recipe import load_recipe
from distiller.reports.report import another_run, print_report, summary
from distiller.reports.results import row
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder


def test_the_table_has_every_row_the_places_and_what_comes_next(
    result: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.json").write_text(json.dumps(result))
    (tmp_path / "loss.png").touch()
    print_report(tmp_path)
    printed = capsys.readouterr().out
    lines = {line.split("  ")[1].strip(): line.split() for line in printed.splitlines() if line.startswith("  ")}
    assert lines["STaR student"][-5:] == ["40.0", "49.0", "51.0", "40.0", "44.0"]
    assert lines["log-mel, ±12 frames"][-5:] == ["10.0", "49.0", "51.0", "40.0", "44.0"]
    assert lines["retention"][-2:] == ["0.50", "0.25"]
    assert (
        "1,234,567 parameters, 2.00 G MACs for 10 s, 61 s, peak 900 MB, held-out loss 0.5, 3 files skipped" in printed
    )
    assert f"{tmp_path / 'student'}" in printed
    assert "phones.png" not in printed
    assert shlex.split(printed.splitlines()[-1]) == [
        *("python", "distiller/run.py", f"--output={tmp_path}-raw", "--method", "star", "--corpus", "/my data"),
        *("seed=1", "objective.scaling=none"),
    ]


def test_the_lines_to_try_next_can_be_pasted(result: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "it's $HOME"
    output.mkdir()
    (output / "report.json").write_text(json.dumps(result))
    print_report(output)
    code = shlex.split(capsys.readouterr().out.splitlines()[-2])[-1]
    assert ast.literal_eval(code.partition("print(load(")[2].removesuffix("))")) == str(output / "student")


@pytest.mark.parametrize(
    ("recipe", "ending", "given", "change"),
    [
        ({"pruning": {"target": 0.75}}, "0.5", "--output exp/x pruning.target=0.75", "pruning.target=0.5"),
        ({"pruning": {"target": 0.5}}, "0.75", "--overwrite --output exp/x", "pruning.target=0.75"),
        ({"pruning": None, "objective": {"name": "star", "scaling": "none"}}, "again", "seed=4", "seed=5"),
        ({"pruning": None, "objective": {"name": "predictions"}}, "again", "", "seed=5"),
    ],
)
def test_another_run_is_the_same_command_with_one_change(recipe: dict, ending: str, given: str, change: str) -> None:
    result = {"recipe": {"seed": 4} | recipe, "command": f"python distiller/run.py --recipe x --teacher a/b {given}"}
    command = f"python distiller/run.py --output=exp/x-{ending} --recipe x --teacher a/b {change}"
    assert another_run(result, Path("exp/x")) == command


@pytest.mark.parametrize(
    ("objective", "title"),
    [
        ("star", "STaR student"),
        ("clusters", "SKILL student"),
        ("layers", "DPHuBERT student"),
        ("predictions", "DistilHuBERT student"),
        ("mine", "mine student"),
    ],
)
def test_the_table_names_the_method(
    objective: str, title: str, result: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result["recipe"]["objective"] = {"name": objective, "scaling": "none"}
    (tmp_path / "report.json").write_text(json.dumps(result))
    print_report(tmp_path)
    assert f"  {title} " in capsys.readouterr().out


def test_the_report_has_the_last_losses_by_the_names_of_their_terms(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(
        "step,lr,loss,term/layer_wise,term/target,step_seconds\n1,0.1,3,2,1,9\n2,0.05,2.5,1.5,1,9\n"
    )
    (tmp_path / "held_out.csv").write_text("step,loss,term/layer_wise\n1,4,3\n2,5,4\n")
    config = EncoderConfig(embed_dim=16, num_heads=1, head_dim=16, attention_heads=((0,),), ffn_dims=(8,))
    student = SpeechEncoder(config)
    summarised = summary(load_recipe("star"), tmp_path, student, {}, skipped=2, seconds=1.26)
    assert summarised["losses"] == {
        "train": {"step": 2, "lr": 0.05, "loss": 2.5, "layer_wise": 1.5, "target": 1},
        "held_out": {"step": 2, "loss": 5, "layer_wise": 4},
        "held_out_best": 4,
    }
    assert (summarised["parameters"], summarised["skipped"], summarised["seconds"]) == (
        parameter_count(student),
        2,
        1.3,
    )
    assert "probe" not in summarised


def test_words_of_recordings_are_a_column(small_run) -> None:
    random = np.random.default_rng(1)
    for word in ("one", "two", "three"):
        noise = 0.1 * random.standard_normal(5000)
        for group, gain in (("near", 1.0), ("far", 0.5)):
            Path("prompts", group).mkdir(parents=True, exist_ok=True)
            soundfile.write(f"prompts/{group}/{word}.wav", gain * noise, 16_000)
    Path("prompts/far/four.wav").write_text("no audio\n" * 500)
    report, printed = small_run.completes("probe.words=[prompts]")
    assert "probe.words: prompts has 1 unusable files, such as " in printed
    assert "four.wav: " in printed
    assert set(report["probe"]) == {"filterbank", "stacked_filterbank", "random", "teacher", "student"}
    assert all(row["word_prompts"] == 100 for row in report["probe"].values())  # a gain changes no encoder's states
    assert report["retention"] == {"word_prompts": None, "word_best_prompts": None}
    assert "words, prompts" in printed
    assert "| student | 100.0 |" in Path("run/student/README.md").read_text()
    assert row(Path("run"))["student_word_prompts"] == 100


def test_words_must_be_there_before_any_work(small_run) -> None:
    assert "probe.words nowhere is not a folder" in small_run.refused("probe.words=[nowhere]")
    Path("empty").mkdir()
    assert "holds no audio" in small_run.refused("probe.words=[empty]")


def test_rows_of_a_finished_run_stand_in_for_the_teacher_and_log_mel(small_run) -> None:
    random = np.random.default_rng(1)
    for group in ("near", "far"):
        Path("prompts", group).mkdir(parents=True)
        for word in ("one", "two"):
            soundfile.write(f"prompts/{group}/{word}.wav", 0.1 * random.standard_normal(5000), 16_000)
    measured, _ = small_run.completes("probe.words=[prompts]")
    Path("run").rename("first run")
    measured["probe"]["teacher"]["word_prompts"] = 12.5  # a number that no measurement of these four words gives
    Path("first run/report.json").write_text(json.dumps(measured))
    report, printed = small_run.completes("probe.words=[prompts]", "probe.references=first run")
    assert set(report["probe"]) == {"filterbank", "stacked_filterbank", "teacher", "student"}
    assert report["probe"]["teacher"] == measured["probe"]["teacher"]
    assert report["probe"]["student"] == measured["probe"]["student"]
    assert " 12.5 " in printed
    assert "| teacher | 12.5 |" in Path("run/student/README.md").read_text()


def test_references_must_be_a_probed_run_of_the_same_teacher_and_words(small_run, tmp_path: Path) -> None:
    assert "probe.references nowhere is not a finished run that was probed" in small_run.refused(
        "probe.references=nowhere"
    )
    small_run.completes()
    Path("run").rename("plain")
    assert "plain is not a finished run that was probed" in small_run.refused("probe.references=plain")
    report = json.loads(Path("plain/report.json").read_text())
    report["probe"] = {name: {"layers": {}} for name in ("filterbank", "stacked_filterbank", "teacher")}
    report["recipe"]["probe"]["words"] = ["/elsewhere"]
    Path("plain/report.json").write_text(json.dumps(report))
    assert "has another teacher or other probes: words (['/elsewhere'] against [])" in small_run.refused(
        "probe.references=plain"
    )
    report["recipe"]["probe"]["words"] = []
    Path("plain/report.json").write_text(json.dumps(report))
    inputs = json.loads(Path("plain/inputs.json").read_text())
    inputs["teacher"]["sha256"] = "0" * 16
    Path("plain/inputs.json").write_text(json.dumps(inputs))
    assert "other probes: teacher.sha256 ('0000000000000000' against " in small_run.refused("probe.references=plain")
