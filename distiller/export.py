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

A recogniser of distiller/finetune.py becomes a folder for `AutoModelForCTC` with a tokenizer, or a graph of its logits.

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
    kinds = "int8: linear layers in 8 bits; static-int8: convolutions and activations, too (onnx)"
    built.add_argument("--quantize", choices=("int8", "static-int8"), help=kinds)
    audio = "a folder, a list, Lhotse, or synthetic: speech that static-int8 measures the range of activations on"
    built.add_argument("--calibrate", metavar="CORPUS", help=audio)
    longest = "the longest wav that the program takes (executorch; default: 30)"
    built.add_argument("--longest", type=float, metavar="SECONDS", help=longest)
    chunks = "chunk by chunk, with the state in and out, for a student of student.attention=chunked (onnx)"
    built.add_argument("--streaming", action="store_true", help=chunks)
    states = "what the graph returns (default: all; logits of a recogniser)"
    built.add_argument("--states", choices=("all", "weighted", "last", "logits"), help=states)
    weights = {"type": comma_separated(float), "metavar": "W,W,..."}
    built.add_argument("--weights", **weights, help="of F^0..F^L for --states weighted (default: equal weights)")
    built.add_argument("--student", help="what s3prl fine-tuned, if it is not where its checkpoint says")
    hub = "show what would be uploaded to the Hugging Face hub as this model (transformers; --output may be left out)"
    built.add_argument("--push-to-hub", metavar="ORG/NAME", help=hub)
    built.add_argument("--upload", action="store_true", help="do upload it; a model of that name gets a new version")
    built.add_argument("--private", action="store_true", help="a new model on the hub is yours alone")
    built.add_argument("--model-config", metavar="YAML", help="the configuration of a STaR .ckpt, if not beside it")
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
        raise UserError(f"--quantize {options.quantize} goes with --to onnx, not --to {options.to}")
    if (options.quantize == "static-int8") != bool(options.calibrate):
        raise UserError("--quantize static-int8 and --calibrate CORPUS go together: neither does without the other")
    if options.longest is not None:
        if options.to != "executorch":
            raise UserError(f"--longest goes with --to executorch, not --to {options.to}")
        require(
            1 < options.longest <= MOST_SECONDS, "--longest", options.longest, f"above 1 and at most {MOST_SECONDS}"
        )
    if options.streaming and (options.to != "onnx" or options.quantize):
        raise UserError("--streaming goes with --to onnx, and without --quantize")
    if options.to in FOLDERS and (options.states not in (None, "all") or options.weights):
        raise UserError(f"--states and --weights are for graphs; --to {options.to} always gives all hidden states")
    if options.weights and options.states != "weighted":
        raise UserError(f"--weights goes with --states weighted, not --states {options.states or 'all'}")
    if options.push_to_hub is None:
        without = next((name for name in ("upload", "private") if getattr(options, name)), None)
        if without:
            raise UserError(f"--{without} goes with --push-to-hub ORG/NAME")
        if options.output is None:
            raise UserError("--output is missing: the folder or file to write (only --push-to-hub does without)")
    elif options.to != "transformers":
        raise UserError(f"--push-to-hub goes with --to transformers, not --to {options.to}")
    else:
        fits = re.fullmatch(r"[\w.-]+/[\w.-]+", options.push_to_hub)
        require(bool(fits), "--push-to-hub", options.push_to_hub, "a hub name of the form ORG/NAME")
    if options.to not in FOLDERS and options.output.is_dir():
        raise UserError(f"--output is {options.output}, which is a folder, but --to {options.to} writes a file")


if __name__ == "__main__":
    sys.exit(main())
