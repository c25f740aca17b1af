"""Command lines of every script: done, help, or exit code 2 with one line; never a traceback.

What would take long, write, or train is replaced by nothing: what is tried is everything before it.
"""

import contextlib
import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml
from fuzz_audio import noise, written
from fuzz_checkpoints import encoder
from fuzz_mutations import LETTERS, junk, misspelt, texts
from fuzz_recipes import overrides
from fuzz_worker import Broken, Target
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from distiller import benchmark, export, grid, run, similarity
from distiller import corpus as preparation_command
from distiller.benchmarks import grid as grid_runs
from distiller.benchmarks import inference, long
from distiller.benchmarks import reading as preparation_benchmark
from distiller.clustering import compare
from distiller.exporters import export as exporting
from distiller.graphs import onnx as export_onnx
from distiller.preparation import prepare as preparation
from distiller.recipes.yaml_files import shipped
from distiller.steps import loop, training
from downstream_recipes import corpora, run_downstream, superb
from downstream_recipes.adaptation import compat
from downstream_recipes.suite import run as suite_run
from downstream_recipes.suite import suite
from downstream_recipes.tasks.tasks import TASKS
from upstream.checkpoint import save

Command = Callable[[list[str]], int]


class Stopped(Exception):
    """Where the real work would begin."""


def stop(*_: Any, **__: Any) -> Any:
    raise Stopped


def nothing(*_: Any, **__: Any) -> Any:
    return {}


def downstream(argv: list[str]) -> int:
    with patch.object(sys, "argv", ["run_downstream.py", *argv]), patch.object(compat, "install", stop):
        return run_downstream.main()


def similar(argv: list[str]) -> int:
    with patch.object(compare, "calibrate", stop):
        return similarity.main(argv)


def exported(argv: list[str]) -> int:
    with (
        patch.object(export_onnx, "to_onnx", stop),
        patch.object(export_onnx, "to_program", stop),
        patch.object(export_onnx, "quantized", stop),
        patch.object(exporting, "to_transformers", stop),
    ):
        return export.main(argv)


def prepared(argv: list[str]) -> int:
    with (
        patch.object(preparation, "prepare", stop),
        patch.object(preparation, "verify", stop),
        patch.object(preparation_benchmark, "benchmark", stop),
    ):
        return preparation_command.main(argv)


def measured(argv: list[str]) -> int:
    with (
        patch.object(inference, "benchmark", stop),
        patch.object(training, "benchmark_training", stop),
        patch.object(loop, "benchmark_loop", stop),
        patch.object(long, "benchmark_long", stop),
    ):
        return benchmark.main(argv)


def gridded(argv: list[str]) -> int:
    with patch.object(grid_runs, "run_cells", nothing), patch.object(grid_runs, "speeds", stop):
        return grid.main(argv)


def scored(argv: list[str]) -> int:
    with (
        patch.object(suite_run, "run_here", stop),
        patch.object(suite_run, "run_on_gpus", stop),
        patch.object(suite_run, "write_report", stop),
        patch.object(suite.Suite, "_describe", lambda _: {"parameters": 1, "states": 3}),
    ):
        return superb.main(argv)


def distilled(argv: list[str]) -> int:
    with patch.object(run, "start", stop):
        return run.main(argv)


def checked(argv: list[str]) -> int:
    with patch.object(corpora, "make_miniature", stop):
        return corpora.main(argv)


PATHS = [
    "bundled",
    "student",
    "corpus",
    "corpus/a.wav",
    "corpora.yaml",
    "gone",
    "",
    " ",
    "-",
    "a b",
    "org/name",
    "\x00",
    "é",
    "~no-such-user/x",
]
INTEGERS = [
    "1",
    "0",
    "-1",
    "2",
    "1e3",
    "nan",
    "inf",
    "99999999999999999999",
    "",
    "x",
    "1,2",
    "1,,2",
    "0.5",
    "-0.5",
    "1e400",
    "auto",
]
SCRIPTS: dict[str, tuple[Command, tuple[str, ...], dict[str, Sequence[str]], bool]] = {
    # the command, its words, its options with usual values (none: a flag), whether key=value is taken
    "run": (
        distilled,
        ("--method=star", "--dry-run"),
        {
            "--method": ["star", "skill", "dphubert", "x"],
            "--recipe": [*shipped(), "mine.yaml", "x"],
            "--teacher": PATHS,
            "--corpus": PATHS,
            "--output": PATHS,
            "--overwrite": [],
            "--dry-run": [],
            "--help": [],
        },
        True,
    ),
    "benchmark": (
        measured,
        ("student",),
        {
            "--train": ["star", "star,skill", "x", ""],
            **dict.fromkeys(
                ("--long", "--chunk", "--overlap", "--seconds", "--batches", "--threads", "--rounds"), INTEGERS
            ),
            "--device": ["cpu", "cuda", "x"],
            "--output": PATHS,
        },
        False,
    ),
    "export": (
        exported,
        ("student", "--to=onnx", "--output=out.onnx"),
        {
            "--to": ["onnx", "transformers", "torch-export", "x"],
            "--quantize": ["int8", "x"],
            "--states": ["all", "weighted", "last", "x"],
            "--weights": ["1,1,1", "1", "nan,1,1", "0,0,0", "1e400,1,1", ",", "x", "-1,-1,-1"],
            "--model-config": PATHS,
            "--output": PATHS,
        },
        False,
    ),
    "similarity": (
        similar,
        ("--teacher=student",),
        {
            "--teacher": PATHS,
            "--corpus": PATHS,
            "--clusters": ["auto", *INTEGERS],
            "--linkage": ["average", "ward", "x"],
            "--contiguous": [],
            "--layers": INTEGERS,
            "--layer-zero": ["feature_projection", "transformer_input", "x"],
            "--frames": INTEGERS,
            "--stride": INTEGERS,
            "--debiased": [],
            "--seed": INTEGERS,
            "--device": ["auto", "cpu", "cuda", "meta", "x", "cpu:1", "cuda:99999999999", ""],
            "--output": PATHS,
        },
        False,
    ),
    "grid": (
        gridded,
        ("--output=grid", "--table=t.csv", "--methods=skill", "--targets=0.5", "--seeds=1"),
        {
            "--methods": ["skill", "dphubert,star-pruned", "x", ""],
            **dict.fromkeys(("--targets", "--paired", "--seeds", "--jobs"), INTEGERS),
            "--report": [],
            "--output": PATHS,
            "--table": PATHS,
        },
        True,
    ),
    "corpus": (
        prepared,
        ("prepare", "corpus", "--output=out"),
        {
            "--output": PATHS,
            "--subsets": ["a", "b", ""],
            "--format": ["wav", "flac", "x"],
            **dict.fromkeys(("--workers", "--max-skipped", "--minutes", "--rounds"), INTEGERS),
            "verify": [],
            "benchmark": [],
        },
        False,
    ),
    "run_downstream": (
        downstream,
        ("-u=starhubert", "-d", "pr", "--corpora=corpora.yaml"),
        {
            "-m": ["train", "evaluate", "x"],
            "-u": ["starhubert", "x", ""],
            "-d": [*TASKS, "ctc", "x", ""],
            "-c": [*PATHS, "recipe.yaml"],
            "-n": PATHS,
            "-p": PATHS,
            "-e": PATHS,
            "--corpora": PATHS,
            "--device": ["cpu", "cuda", "x", ""],
            "-k": PATHS,
            "-o": ["config.runner.total_steps=1", "x"],
        },
        False,
    ),
    "superb": (
        scored,
        ("-u", "starhubert", "-k", "student", "--corpora=corpora.yaml"),
        {
            "-u": ["starhubert", "x", ""],
            "-k": PATHS,
            "-g": PATHS,
            "--tasks": ["all", *TASKS, "pr,,sid", ",", "x", ""],
            "--corpora": PATHS,
            "--output": PATHS,
            "--overwrite": [],
            "--lr-search": [],
            "--submission": [],
            "--beside": PATHS,
            "--gpus": ["0", "0,1", "", "x"],
            "--device": ["cpu", "x", ""],
        },
        False,
    ),
    "corpora": (checked, ("check", "corpora.yaml"), {"check": PATHS, "make-mini": PATHS, "-h": []}, False),
}


def argv(words: Sequence[str], options: dict[str, Sequence[str]], with_overrides: bool) -> SearchStrategy[list[str]]:
    def option(name: str) -> SearchStrategy[list[str]]:
        value = (st.sampled_from(options[name]) if options[name] else st.nothing()) | texts
        given = value.map(lambda one: [name, one]) | value.map(lambda one: [f"{name}={one}"])
        return given if options[name] else st.just([name]) | given

    known = st.sampled_from(sorted(options)).flatmap(option)
    wrong = st.sampled_from(sorted(options)).flatmap(misspelt).map(lambda name: [name]) | texts.map(lambda one: [one])
    some = known | known | known | wrong
    some = some | overrides() if with_overrides else some
    usual = st.just(list(words)) | st.just(list(words)) | st.just([])
    return st.tuples(usual, st.lists(some, max_size=4)).map(
        lambda pair: [*pair[0], *(word for one in pair[1] for word in one)]
    )


def corpora_files() -> SearchStrategy[str]:
    """Mostly a good one."""
    keys = ["librispeech", "lexicon", "workers", "voxceleb1", "asr_lengths", "miniature", "libirspeech"]
    value = st.sampled_from(["corpus", "gone", ["corpus", "corpus/a.wav"], [], 0, 1, "corpus/a.wav", None]) | junk
    values = st.dictionaries(st.sampled_from(keys) | texts, value, max_size=4)
    dumped = values.map(lambda one: yaml.safe_dump(one, allow_unicode=True))
    return st.just("librispeech: corpus\nlexicon: [corpus]\n") | dumped | st.text(LETTERS, max_size=30)


def check(example: tuple[str, list[str], str]) -> None:
    script, words, listed = example
    for name in ("student", "corpus"):
        shutil.copytree(Path.cwd().parent / "base" / name, name)
    Path("corpora.yaml").write_bytes(listed.encode("utf-8", "surrogatepass"))
    Path("recipe.yaml").write_text("runner: {total_steps: 1}\nworkers: ${workers}\nx: ${corpora.librispeech}\n")
    Path("mine.yaml").write_text("extends: star\nseed: 3\n")
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), no_paths():
            code: Any = SCRIPTS[script][0](words)
    except Stopped:
        return
    except SystemExit as error:
        code = error.code
        if code == 2 and "usage:" in err.getvalue():  # argparse's own, of the downstream scripts
            return
    if code not in (0, 1, 2):
        raise Broken(f"exit code {code!r}")
    if "Traceback" in err.getvalue():
        raise Broken(f"a traceback of {script}")
    lines = [line for line in err.getvalue().splitlines() if not line.startswith("warning: ")]
    if code == 2 and len(lines) + (script == "superb" and len(out.getvalue().splitlines())) != 1:
        raise Broken(f"exit code 2 of {script} with {len(lines)} lines on stderr")


@contextlib.contextmanager
def no_paths() -> Iterator[None]:
    """Neither a hub nor corpora of the machine, whatever the environment says."""
    with patch.dict(os.environ, {"HF_HUB_OFFLINE": "1"}):
        for name in ("SUPERB_CORPORA", "RANK", "LOCAL_RANK", "SLURM_PROCID"):
            os.environ.pop(name, None)
        yield


def target(base: Path) -> Target:
    save(encoder(), base / "student")
    (base / "corpus").mkdir()
    for name in "abcd":
        (base / f"corpus/{name}.wav").write_bytes(written("wav", noise(16_000), 16_000))
    script = st.sampled_from(sorted(SCRIPTS))
    return Target(
        script.flatmap(lambda name: st.tuples(st.just(name), argv(*SCRIPTS[name][1:]), corpora_files())), check
    )
