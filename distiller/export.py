#!/usr/bin/env python
"""The command distiller/export.py: a student in the format of another library."""

import sys
from pathlib import Path

if __name__ == "__main__":  # runs uninstalled and from any directory
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import re
from collections.abc import Sequence

from distiller.common.command import Parser, comma_separated, run_command
from distiller.common.files import check_writable
from upstream.errors import UserError, require

FOLDERS = ("student", "transformers")  # exports that are folders
MOST_SECONDS = 300  # of a wav on a phone, whose attention maps are in memory at once
DESCRIPTION = """\
Export a student: a folder for `transformers`, an ONNX file (also in 8 bits), an ExecuTorch program for phones, or a
`torch.export` program; or make a student folder of any other checkpoint, such as s3prl's dev-best.ckpt with a
fine-tuned upstream.

A recogniser trained by distiller/finetune.py becomes a folder for `AutoModelForCTC` with a tokenizer, or a graph that
returns its logits.

Each export is opened and compared with the student before it is kept.
"""

EPILOG = """\
examples:
  python distiller/export.py exp/star/student --to transformers --output exp/star/transformers
  python distiller/export.py exp/star/student --to onnx --output exp/star/student.onnx
  python distiller/export.py exp/star/student --to onnx --quantize int8 --output exp/star/student-int8.onnx
  python distiller/export.py exp/star/student --to onnx --quantize static-int8 --calibrate synthetic --output fast.onnx
  python distiller/export.py exp/live/student --to onnx --streaming --output exp/live/student.onnx
  python distiller/export.py exp/star/student --to executorch --longest 20 --output exp/star/student.pte
  python distiller/export.py DPHuBERT-sp0.75.pth --to onnx --states last --output dphubert.onnx
  python distiller/export.py exp/star/student --to transformers --push-to-hub my-name/star-student
  python distiller/export.py exp/ctc/model --to transformers --output exp/ctc/transformers
  python distiller/export.py result/downstream/EXPERIMENT/dev-best.ckpt --to student --output exp/star/fine-tuned
"""


def parser() -> Parser:
    built = Parser(prog="distiller/export.py", description=DESCRIPTION, epilog=EPILOG)
    built.add_argument(
        "checkpoint", help="a student, a recogniser, or any checkpoint that upstream.checkpoint.load opens"
    )
    built.add_argument("--to", required=True, choices=(*FOLDERS, "onnx", "executorch", "torch-export"))
    built.add_argument("--output", type=Path, help="the folder (transformers, student) or file to write")
    kinds = "int8: linear layers in 8 bits; static-int8: also convolutions and activations (onnx)"
    built.add_argument("--quantize", choices=("int8", "static-int8"), help=kinds)
    audio = "speech for static-int8 to measure activation ranges on: a folder, a list, Lhotse, or synthetic"
    built.add_argument("--calibrate", metavar="CORPUS", help=audio)
    longest = "the longest wav that the program accepts (executorch; default: 30)"
    built.add_argument("--longest", type=float, metavar="SECONDS", help=longest)
    chunks = "process chunk by chunk, with state inputs and outputs; needs student.attention=chunked (onnx)"
    built.add_argument("--streaming", action="store_true", help=chunks)
    states = "states that the graph returns (default: all; for a recogniser, logits)"
    built.add_argument("--states", choices=("all", "weighted", "last", "logits"), help=states)
    weights = {"type": comma_separated(float), "metavar": "W,W,..."}
    built.add_argument("--weights", **weights, help="weights of F^0..F^L with --states weighted (default: equal)")
    built.add_argument(
        "--student", help="the student that s3prl fine-tuned, if it is not at the path stored in the checkpoint"
    )
    hub = "show which files would be uploaded to the Hugging Face hub (transformers; --output is optional)"
    built.add_argument("--push-to-hub", metavar="ORG/NAME", help=hub)
    built.add_argument("--upload", action="store_true", help="upload the files; an existing model gets a new version")
    built.add_argument("--private", action="store_true", help="make a new model on the hub private")
    built.add_argument(
        "--model-config", metavar="YAML", help="the configuration of a STaR .ckpt, if it is not next to the checkpoint"
    )
    return built


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(lambda: _main(parser().parse_args(argv)), "nothing is exported")


def _main(options: argparse.Namespace) -> None:
    _check(options)
    output = options.output
    if output is not None:
        check_writable(output if options.to in FOLDERS else output.parent)
    from distiller.exporters.export import export  # takes seconds

    print(export(**vars(options)))


def _check(options: argparse.Namespace) -> None:
    """Options that go together."""
    if options.quantize and options.to != "onnx":
        raise UserError(f"--quantize {options.quantize} needs --to onnx, not --to {options.to}")
    if (options.quantize == "static-int8") != bool(options.calibrate):
        raise UserError("--quantize static-int8 and --calibrate CORPUS must be given together")
    if options.longest is not None:
        if options.to != "executorch":
            raise UserError(f"--longest needs --to executorch, not --to {options.to}")
        require(
            1 < options.longest <= MOST_SECONDS, "--longest", options.longest, f"above 1 and at most {MOST_SECONDS}"
        )
    if options.streaming and (options.to != "onnx" or options.quantize):
        raise UserError("--streaming needs --to onnx and cannot be combined with --quantize")
    if options.to in FOLDERS and (options.states not in (None, "all") or options.weights):
        raise UserError(
            f"--states and --weights do not apply to --to {options.to}, which always exports all hidden states"
        )
    if options.weights and options.states != "weighted":
        raise UserError(f"--weights needs --states weighted, not --states {options.states or 'all'}")
    if options.push_to_hub is None:
        without = next((name for name in ("upload", "private") if getattr(options, name)), None)
        if without:
            raise UserError(f"--{without} needs --push-to-hub ORG/NAME")
        if options.output is None:
            raise UserError("--output is missing; give the folder or file to write (optional only with --push-to-hub)")
    elif options.to != "transformers":
        raise UserError(f"--push-to-hub needs --to transformers, not --to {options.to}")
    else:
        fits = re.fullmatch(r"[\w.-]+/[\w.-]+", options.push_to_hub)
        require(bool(fits), "--push-to-hub", options.push_to_hub, "a hub name of the form ORG/NAME")
    if options.to not in FOLDERS and options.output.is_dir():
        raise UserError(f"--output is {options.output}, which is a folder, but --to {options.to} writes a file")


if __name__ == "__main__":
    sys.exit(main())
