#!/usr/bin/env python
"""The command distiller/units.py: k-means over one layer of an encoder, and a corpus as its units."""

import sys
from pathlib import Path

if __name__ == "__main__":  # runs uninstalled and from any directory
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from collections.abc import Sequence

from distiller.codebooks.config import UnitsConfig
from distiller.common.command import Parser, run_command
from distiller.common.files import check_writable
from distiller.extraction.options import LAYER_ZERO, MODEL, add_options, check_options, tell_skipped
from upstream.errors import UserError, require

DESCRIPTION = """\
Represent speech as discrete units. `fit` fits k-means on one layer of an encoder; `extract` writes the units of every
recording of a corpus, one line each, and reports their bit rate and, on the synthetic corpus, how well they match
phones. For training targets, use distiller/targets.py instead.
"""

EPILOG = """\
examples:
  python distiller/units.py fit data/my-audio --model exp/star/student --layer 4 --output exp/star/student/units
  python distiller/units.py fit exp/features --model exp/star/student --layer 4 --units 100 --output exp/units-4
  python distiller/units.py extract data/my-audio --units exp/star/student/units --output exp/units.txt
  python distiller/units.py extract synthetic --units exp/units-4 --deduplicate --output exp/deduplicated.txt
"""


def parser() -> Parser:
    built = Parser(prog="distiller/units.py", description=DESCRIPTION, epilog=EPILOG)
    commands = built.add_subparsers(dest="command", required=True, metavar="COMMAND")

    fit = commands.add_parser(
        "fit", help="fit k-means on one layer, computed for a corpus or read from a folder written by features.py"
    )
    add_options(fit)
    fit.add_argument("--model", required=True, help=MODEL)
    fit.add_argument("--layer", type=int, required=True, help="layer of the model")
    fit.add_argument("--units", type=int, default=500, help="centroids (default: 500)")
    fit.add_argument(
        "--norm", default="none", help="normalisation of frames before quantisation: none (default) or frame"
    )
    fit.add_argument("--layer-zero", default="feature_projection", metavar="STATE", help=LAYER_ZERO)
    fit.add_argument("--frames", type=int, default=100_000, help="frames to fit on (default: 100000)")
    fit.add_argument("--seed", type=int, default=1, help="random seed for the sample and k-means (default: 1)")
    fit.add_argument("--output", type=Path, required=True, help="folder to write, for example MODEL/units")

    extract = commands.add_parser("extract", help="write the units of a corpus")
    add_options(extract)
    extract.add_argument("--units", type=Path, required=True, metavar="FOLDER", help="folder written by fit")
    extract.add_argument("--model", help="the encoder, if it has moved since the units were fitted")
    extract.add_argument(
        "--deduplicate", action="store_true", help="write a repeated unit once, with its number of frames"
    )
    extract.add_argument("--output", type=Path, required=True, metavar="FILE", help="text; statistics in FILE.json")
    return built


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(lambda: _main(parser().parse_args(argv)))


def _main(options: argparse.Namespace) -> None:
    check_options(options)
    (_fit if options.command == "fit" else _extract)(options)


def _fit(options: argparse.Namespace) -> None:
    names = ("units", "norm", "layer_zero", "frames", "seed")
    config = UnitsConfig([options.layer], **{name: getattr(options, name) for name in names})
    check_writable(options.output)
    from distiller.clustering.compare import usable_device  # takes seconds
    from distiller.codebooks.quantiser import fit_quantiser
    from distiller.extraction.forward import Pace
    from distiller.teachers.teacher import identity, load_teacher

    pace = Pace(usable_device(options.device), options.batch_seconds, options.chunk_seconds, options.workers)
    encoder = load_teacher(options.model)
    depth = encoder.config.num_layers
    require(0 <= options.layer <= depth, "--layer", options.layer, f"a layer of the model, from 0 to {depth}")
    told, encoder = identity(encoder), encoder.to(pace.device)
    source = (options.corpus, options.subsets)
    tell_skipped(fit_quantiser(config, encoder, told, options.model, *source, options.output, pace))
    print(f"{options.output} holds {options.units} units of layer {options.layer}")


def _extract(options: argparse.Namespace) -> None:
    check_writable(options.output.parent)
    from distiller.audio.skipped import Skipped  # takes seconds
    from distiller.clustering.compare import usable_device
    from distiller.codebooks.quantiser import open_quantiser
    from distiller.codebooks.text import extract_units, summary
    from distiller.extraction.forward import Pace
    from distiller.extraction.ranks import joined
    from distiller.teachers.teacher import identity, load_teacher

    quantiser = open_quantiser(options.units)
    device, model = usable_device(options.device), options.model or quantiser.model
    if model is None:
        raise UserError(f"--units {options.units} does not name the model; give it with --model")
    encoder = load_teacher(model)
    quantiser.check(model, identity(encoder))
    with joined() as ranks:
        device = ranks.device(device)
        pace = Pace(device, options.batch_seconds, options.chunk_seconds, options.workers, ranks.on_machine)
        source = (options.corpus, options.subsets)
        values = extract_units(quantiser, encoder.to(device), *source, options.output, options.deduplicate, pace, ranks)
    if values is not None:
        tell_skipped([Skipped(**row) for row in values["skipped"]])
        print(summary(options.output, values))


if __name__ == "__main__":
    sys.exit(main())
