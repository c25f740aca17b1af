#!/usr/bin/env python
"""The command distiller/targets.py: discrete units of a teacher's layers for every frame of a corpus."""

import sys
from pathlib import Path

if __name__ == "__main__":  # runs uninstalled and from any directory
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import os
from collections.abc import Sequence

from distiller.common.command import Parser, comma_separated, complain, run_command
from distiller.common.files import check_writable, expanded
from distiller.extraction.options import check_subsets

DESCRIPTION = """\
Quantise a teacher's layers into units, the targets of objective=units: k-means, or a residual quantiser of several
stages, fitted on a sample of the corpus. Run the same command again to continue after an interruption.
"""

EPILOG = """\
examples:
  python distiller/targets.py synthetic --layers 4 --units 100 --output exp/units
  python distiller/run.py --method star objective=units objective.targets=exp/units
  python distiller/targets.py /data/LibriSpeech --teacher facebook/hubert-base-ls960 --layers 9 --output exp/units-9 \\
      --subsets train-clean-100,train-clean-360,train-other-500,dev-clean
"""


def parser() -> Parser:
    built = Parser(prog="distiller/targets.py", description=DESCRIPTION, epilog=EPILOG)
    option = built.add_argument
    option("corpus", metavar="CORPUS", help="synthetic, a folder or a manifest")
    option(
        "--subsets",
        type=comma_separated(str),
        default=[],
        help="subsets of the corpus, including the run's corpus.validation",
    )
    option("--teacher", default="bundled", help="bundled, a hub name, a folder or file (default: bundled)")
    option("--layers", type=comma_separated(int), required=True, metavar="9|3,6,9", help="teacher layers to quantise")
    option(
        "--units", type=int, default=500, help="units per codebook; up to 256 need one byte per frame (default: 500)"
    )
    option("--stages", type=int, default=1, help="1: k-means (default); more: a residual quantiser")
    option("--norm", default="none", help="normalisation of frames before quantisation: none (default) or frame")
    zero = "state to use as layer 0: feature_projection (P, the default) or transformer_input (F^0)"
    option("--layer-zero", default="feature_projection", metavar="STATE", help=zero)
    option("--frames", type=int, default=100_000, help="frames to fit the codebook on (default: 100000)")
    option("--longest", type=float, default=100.0, help="the run's corpus.batch_seconds or max_seconds (default: 100)")
    option("--window-seconds", type=float, default=20.0, help="the run's corpus.window_seconds (default: 20)")
    option("--seed", type=int, default=1, help="random seed for the sample and k-means (default: 1)")
    option("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    option("--output", type=Path, help="folder (default: CORPUS/targets if that is prepared, else exp/targets)")
    return built


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(lambda: _main(parser().parse_args(argv)))


def _main(options: argparse.Namespace) -> None:
    from distiller.audio.decoding import Decoder  # takes seconds
    from distiller.clustering.compare import usable_device
    from distiller.codebooks.config import UnitsConfig
    from distiller.codebooks.make import make_units
    from distiller.corpora.config import CorpusConfig
    from distiller.corpora.corpus import open_corpus
    from distiller.corpora.prepared import is_prepared
    from distiller.teachers.teacher import identity, load_teacher
    from upstream.errors import UserError, require

    names = ("layers", "units", "stages", "norm", "layer_zero", "frames", "seed")
    config = UnitsConfig(**{name: getattr(options, name) for name in names})
    for name in ("longest", "window_seconds"):
        require(
            0 < getattr(options, name) < float("inf"), f"--{name.replace('_', '-')}", getattr(options, name), "above 0"
        )
    check_subsets(options.subsets)
    folder = expanded(options.corpus)
    if options.corpus != "synthetic" and not os.path.exists(folder):
        raise UserError(f"CORPUS {options.corpus} does not exist; it could be synthetic, a folder or a manifest")
    output = options.output or (folder / "targets" if is_prepared(folder) else Path("exp/targets"))
    check_writable(output)
    device = usable_device(options.device)
    teacher = load_teacher(options.teacher)
    config.check_teacher(teacher.config.num_layers)
    seconds = {"batch_seconds": options.longest, "window_seconds": options.window_seconds}
    section = CorpusConfig(path=options.corpus, subsets=options.subsets, max_skipped=1.0, **seconds)
    corpus = open_corpus(section, Decoder(teacher.config.min_samples))
    cuts = sorted(corpus.train + corpus.validation, key=lambda cut: cut.id)
    skipped = make_units(config, teacher, identity(teacher), cuts, output, device)
    if skipped:
        complain(f"warning: {len(skipped)} utterances cannot be decoded; the first is {skipped[0].path}")
    print(f"wrote the units of {len(cuts) - len(skipped)} utterances to {output}")


if __name__ == "__main__":
    sys.exit(main())
