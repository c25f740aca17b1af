"""The scripts whose command lines are fuzzed: their options, usual values, and where their real work would begin."""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from distiller import (
    benchmark,
    export,
    features,
    finetune,
    grid,
    merge,
    probe,
    run,
    similarity,
    targets,
    transcribe,
    units,
)
from distiller import corpus as preparation_command
from distiller.benchmarks import grid as grid_runs
from distiller.benchmarks import inference, long
from distiller.benchmarks import reading as preparation_benchmark
from distiller.clustering import compare
from distiller.codebooks import make, quantiser, text
from distiller.exporters import export as exporting
from distiller.exporters import merging
from distiller.extraction import extract
from distiller.finetuning import decoding
from distiller.graphs import onnx as export_onnx
from distiller.preparation import prepare as preparation
from distiller.probes import evaluate
from distiller.recipes.yaml_files import shipped
from distiller.steps import loop, training
from downstream_recipes import corpora, run_downstream, superb
from downstream_recipes.adaptation import compat
from downstream_recipes.suite import run as suite_run
from downstream_recipes.suite import suite
from downstream_recipes.tasks.tasks import TASKS

Command = Callable[[list[str]], int]


class Stopped(Exception):
    """Where the real work would begin."""


def stop(*_: Any, **__: Any) -> Any:
    raise Stopped


def nothing(*_: Any, **__: Any) -> Any:
    return {}


def stopping(main: Command, *places: tuple[Any, str]) -> Command:
    """The command with these names of modules replaced by `stop`."""

    def command(argv: list[str]) -> int:
        with ExitStack() as stack:
            for module, name in places:
                stack.enter_context(patch.object(module, name, stop))
            return main(argv)

    return command


def downstream(argv: list[str]) -> int:
    with patch.object(sys, "argv", ["run_downstream.py", *argv]), patch.object(compat, "install", stop):
        return run_downstream.main()


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


PATHS = [
    "bundled", "student", "corpus", "corpus/a.wav", "corpora.yaml", "gone", "", " ", "-", "a b", "org/name", "\x00",
    "é", "~no-such-user/x",
]  # fmt: skip
INTEGERS = [
    "1", "0", "-1", "2", "1e3", "nan", "inf", "99999999999999999999", "", "x", "1,2", "1,,2", "0.5", "-0.5", "1e400",
    "auto",
]  # fmt: skip
DEVICES = ["auto", "cpu", "cuda", "meta", "x", "cpu:1", "cuda:99999999999", ""]
EXTRACTION = {
    **dict.fromkeys(("--chunk-seconds", "--batch-seconds", "--workers"), INTEGERS),
    "--subsets": ["a", "a,a", ""],
    "--device": DEVICES,
    "--output": PATHS,
}
SCRIPTS: dict[str, tuple[Command, tuple[str, ...], dict[str, Sequence[str]], bool]] = {
    # the command, its words, its options with usual values (none: a flag), whether key=value is taken
    "run": (
        stopping(run.main, (run, "start")),
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
        stopping(
            benchmark.main,
            (inference, "benchmark"),
            (training, "benchmark_training"),
            (loop, "benchmark_loop"),
            (long, "benchmark_long"),
        ),
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
        stopping(
            export.main,
            *((export_onnx, name) for name in ("to_onnx", "to_program", "quantized")),
            *((exporting, name) for name in ("to_transformers", "statically_quantized", "calibration_audio")),
        ),
        ("student", "--to=onnx", "--output=out.onnx"),
        {
            "--to": ["onnx", "transformers", "torch-export", "x"],
            "--quantize": ["int8", "static-int8", "x"],
            "--calibrate": ["synthetic", *PATHS],
            "--states": ["all", "weighted", "last", "x"],
            "--weights": ["1,1,1", "1", "nan,1,1", "0,0,0", "1e400,1,1", ",", "x", "-1,-1,-1"],
            "--model-config": PATHS,
            "--output": PATHS,
        },
        False,
    ),
    "similarity": (
        stopping(similarity.main, (compare, "calibrate")),
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
            "--device": DEVICES,
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
        stopping(
            preparation_command.main,
            (preparation, "prepare"),
            (preparation, "verify"),
            (preparation_benchmark, "benchmark"),
        ),
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
    "corpora": (
        stopping(corpora.main, (corpora, "make_miniature")),
        ("check", "corpora.yaml"),
        {"check": PATHS, "make-mini": PATHS, "-h": []},
        False,
    ),
    "features": (
        stopping(features.main, (extract, "extract_features")),
        ("corpus", "--output=out", "--model=student"),
        {
            **EXTRACTION,
            "--model": PATHS,
            "--layers": ["all", *INTEGERS],
            "--mean": [],
            "--weights": PATHS,
            "--layer-zero": ["feature_projection", "transformer_input", "x"],
            "--dtype": ["fp16", "fp32", "x"],
            "--format": ["npy", "safetensors", "hdf5", "x"],
        },
        False,
    ),
    "units": (
        stopping(units.main, (quantiser, "fit_quantiser"), (text, "extract_units")),
        ("fit", "corpus", "--model=student", "--layer=1", "--output=out"),
        {
            **EXTRACTION,
            "extract": [],
            "--model": PATHS,
            **dict.fromkeys(("--layer", "--units", "--frames", "--seed"), INTEGERS),
            "--norm": ["none", "frame", "x"],
            "--layer-zero": ["feature_projection", "transformer_input", "x"],
            "--deduplicate": [],
        },
        False,
    ),
    "targets": (
        stopping(targets.main, (make, "make_units")),
        ("corpus", "--teacher=student", "--layers=1", "--output=out"),
        {
            "--subsets": ["a", "a,a", ""],
            "--teacher": PATHS,
            **dict.fromkeys(("--layers", "--units", "--stages", "--frames", "--seed"), INTEGERS),
            **dict.fromkeys(("--longest", "--window-seconds"), INTEGERS),
            "--norm": ["none", "frame", "x"],
            "--layer-zero": ["feature_projection", "transformer_input", "x"],
            "--device": DEVICES,
            "--output": PATHS,
        },
        False,
    ),
    "probe": (
        stopping(probe.main, (evaluate, "evaluate")),
        ("student", "--words=corpus", "--output=t.csv"),
        {"--words": PATHS, "--classes": PATHS, "--output": PATHS},
        False,
    ),
    "finetune": (
        stopping(finetune.main, (finetune, "start")),
        ("--model=student", "--corpus=corpus", "--dry-run"),
        {
            "--recipe": ["ctc", "ctc-100h", "mine.yaml", "x"],
            "--model": ["log-mel", *PATHS],
            "--corpus": PATHS,
            "--output": PATHS,
            "--overwrite": [],
            "--dry-run": [],
        },
        True,
    ),
    "transcribe": (
        stopping(transcribe.main, (decoding, "transcriptions")),
        ("student", "corpus/a.wav"),
        {"--beam": INTEGERS, "--device": DEVICES, "--help": []},
        False,
    ),
    "merge": (
        stopping(merge.main, (merging, "merge")),
        ("student", "corpus", "--output=out"),
        {"--alpha": INTEGERS, "--weights": ["1,1", "0.5,0.5", "1", "nan,1", ",", "x"], "--output": PATHS},
        False,
    ),
}
