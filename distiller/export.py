#!/usr/bin/env python
"""Take a student elsewhere: a folder for `transformers`, an ONNX file (also 8-bit), a `torch.export` program.

Each is opened and compared with the student before it is kept.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # runs uninstalled and from any directory; distiller/ itself is no place to import from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from collections.abc import Sequence

from distiller.common.command import Parser, run_command
from distiller.common.files import check_writable
from upstream.errors import UserError

EPILOG = """\
examples:
  python distiller/export.py exp/star/student --to transformers --output exp/star/transformers
  python distiller/export.py exp/star/student --to onnx --output exp/star/student.onnx
  python distiller/export.py exp/star/student --to onnx --quantize int8 --output exp/star/student-int8.onnx
  python distiller/export.py DPHuBERT-sp0.75.pth --to onnx --states last --output dphubert.onnx
"""
TARGETS = ("transformers", "onnx", "torch-export")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """
    Raises:
        UserError: options that are wrong or do not go together.
    """
    parser = Parser(prog="distiller/export.py", description=__doc__, epilog=EPILOG)
    parser.add_argument("checkpoint", help="a student folder, or any checkpoint that upstream.checkpoint.load opens")
    parser.add_argument("--to", required=True, choices=TARGETS)
    parser.add_argument("--output", required=True, type=Path, help="the folder (transformers) or file to write")
    parser.add_argument("--quantize", choices=("int8",), help="8-bit linear layers (onnx)")
    parser.add_argument("--states", choices=("all", "weighted", "last"), default="all", help="what an ONNX file gives")
    parser.add_argument("--weights", metavar="W,W,...", help="of F^0..F^L for --states weighted (default: equal ones)")
    parser.add_argument("--model-config", metavar="YAML", help="the configuration of a STaR .ckpt, if not beside it")
    options = parser.parse_args(argv)
    if options.quantize and options.to != "onnx":
        raise UserError(f"--quantize {options.quantize} goes with --to onnx, not --to {options.to}")
    if options.to == "transformers" and (options.states != "all" or options.weights):
        raise UserError("--states and --weights are for graphs; a transformers model always gives all hidden states")
    if options.weights and options.states != "weighted":
        raise UserError(f"--weights goes with --states weighted, not --states {options.states}")
    options.weights = _weights(options.weights)
    return options


def _weights(text: str | None) -> list[float] | None:
    try:
        return [float(number) for number in text.split(",")] if text else None
    except ValueError:
        raise UserError(f"--weights is '{text:.80}', not numbers with commas between them") from None


def export(options: argparse.Namespace) -> None:
    """Load, convert, check, write, and say how close it is."""
    from upstream.checkpoint import load

    if options.to != "transformers" and options.output.is_dir():
        raise UserError(f"--output is {options.output}, which is a folder, but --to {options.to} writes a file")
    check_writable(options.output if options.to == "transformers" else options.output.parent)
    student = load(options.checkpoint, options.model_config)
    if options.to == "transformers":
        from distiller.exporters.card import transformers_card
        from distiller.exporters.transformers import needs_own_code, to_transformers

        own_code = needs_own_code(student)
        difference = to_transformers(student, options.output, transformers_card(student, options.checkpoint, own_code))
        opened = "AutoModel.from_pretrained" + (" with trust_remote_code=True" if own_code else "")
        print(f"{options.output}: {opened} opens it; largest difference of any hidden state {difference:.1e}")
        return
    from distiller.exporters import onnx as export_onnx

    graph = export_onnx.graph_of(student, options.states, options.weights)
    if options.to == "torch-export":
        difference = export_onnx.to_program(graph, options.output)
    elif options.quantize:
        print(export_onnx.quantized(graph, options.output))
        return
    else:
        difference = export_onnx.to_onnx(graph, options.output)
    print(
        f"{options.output}: waveforms and lengths in, {graph.output_name} and frame_lengths out; "
        f"{difference:.1e} at most from PyTorch"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0; 2 for a mistake of the user's, 130 or 143 when interrupted, with one line on stderr."""
    return run_command(lambda: export(parse(argv)), "nothing is exported")


if __name__ == "__main__":
    sys.exit(main())
